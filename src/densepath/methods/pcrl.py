"""PCRL: contrasts images, and reconstructs flipped and turned mixtures of them from the same features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distillation import deviation
from densepath.core.distributed import Shuffle
from densepath.core.errors import UserError
from densepath.core.losses import full_precision, info_nce, standardize
from densepath.core.mixing import beta, mix
from densepath.core.momentum import Momentum
from densepath.core.queue import Queue
from densepath.core.regions import global_pool
from densepath.methods.base import Losses, Method, Reconstruction
from densepath.methods.collapse import output_spread
from densepath.methods.option_effects import Needed, With, one_of
from densepath.nets.backbones import Backbone
from densepath.nets.decoders.build import build_decoder, decoder_state
from densepath.nets.heads import MLPHead
from densepath.nets.norms import normalized_together
from densepath.nets.transformation_attention import Attention, TransformationAttention
from densepath.sources.pixel_source import PixelSource, check_unit_range
from densepath.views.augment import Augment
from densepath.views.corruptions import Painting
from densepath.views.declarations import Declaration, Turned, window_views
from densepath.views.turns import indicator, turned
from densepath.views.view import Batch

Maps = dict[int, Tensor]
Targets = Literal["turns", "flips", "same", "none"]
_SAME = (0.0, 0.0, 0.0)


class PCRL(Method):
    """Preservational contrastive representation learning.

    An ordinary encoder sees one corrupted view x_o of each image, its momentum copy the other one, x_m; with clean
    views X, flips and turns T, and lambda from Beta(alpha, alpha) for each image, a hybrid encoder has the maps

    F_h = lambda F_o + (1 - lambda) F_m   and the target   T_h(lambda X_o + (1 - lambda) X_m)   (Equations 5 and 6).

    The deepest map of each passes an attention that is conditioned on its T (:class:`TransformationAttention`); one
    U-Net decoder D reconstructs all three (Equation 8), and the deepest maps of the first two are contrasted
    (Equation 7, with the positive in the denominator):

    L = 1/2 InfoNCE(g_o(F_o), g_m(F_m), queue) + 1/2 sum over e in {o, m, h} of mean (D(F_e) - T_e(X_e))^2.

    The keys of all three join the queue after the step. The paper does not say which attention and projector the hybrid
    encoder has: here the ordinary attention and the momentum projector, the latter without gradient.

    Without some of its parts it is a row of the paper's Tables 1 and 2; a loss that has only one part has no factor.

    Args:
        backbone: the ordinary encoder.
        dim: dimension of the embeddings.
        hidden_dim: width of the projector's hidden layer.
        temperature: temperature of the contrastive loss.
        queue_size: number of keys kept as negatives; three of each image.
        momentum: momentum of the momentum encoder, per optimizer step.
        attention: "outer" is the paper's; "factored" has the large layer as a product of parts, "gate" is the
            released code's, "none" leaves it out.
        attention_rank: rank of "factored".
        targets: what the targets are: flipped and turned views ("turns"), flipped ones ("flips"), the views themselves
            ("same": self-reconstruction), or "none" for no reconstruction.
        alpha: the parameter of Beta; 0 for no hybrid encoder.
        predict_turns: also predict the quarter turns of a turned view (RotNet), with the weight of a reconstruction.
        shuffle: whether keys are shuffled as in MoCo.
        standardize: whether embeddings are standardized over the batch, as in :class:`MoCoV2`.
        contrast: whether maps are contrasted "after" the attention (paper) or "before" it (released code). After it,
            embeddings tell first of all how the target is turned, which differs between the two views.
        windows: sizes in pixels, in the tensor's order: the crops are pairs of windows of one of these sizes, resized.
        min_iou: the least intersection over union of such a pair.
        painting: probability that a view is painted; of these, 4 of 5 outside of blocks.
        sigmoid: whether a sigmoid follows the predicted pixels, which then are in [0, 1]: for mean 0 and std 1.

    Source: Zhou et al., ICCV 2021. The released code differs in many ways: see :class:`PCRLReleased`.
    """

    needed_options: ClassVar[Needed] = {
        "attention_rank": (With("attention", one_of("factored")),),
        "contrast": (With("attention"),),
        "min_iou": (With("windows"),),
        "sigmoid": (With("targets"),),
    }

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        hidden_dim: int = 128,
        temperature: float = 0.2,
        queue_size: int = 16384,
        momentum: float = 0.99,
        attention: Attention | Literal["none"] = "outer",
        attention_rank: int = 64,
        targets: Targets = "turns",
        alpha: float = 1.0,
        predict_turns: bool = False,
        shuffle: bool = True,
        standardize: bool = False,
        contrast: Literal["after", "before"] = "after",
        windows: tuple[tuple[int, ...], ...] = (),
        min_iou: float = 0.2,
        painting: float = 0.9,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0 or not 0 <= momentum <= 1 or alpha < 0:
            raise UserError("PCRL needs a positive temperature, a momentum from 0 to 1, and an alpha of at least 0")
        if contrast not in ("after", "before"):
            raise UserError(f"contrast is {contrast!r}; give after or before, that is, the attention")
        if targets not in ("turns", "flips", "same", "none"):
            raise UserError(f"unknown targets {targets!r}; there are: turns, flips, same, none")
        if targets == "none" and (attention != "none" or alpha > 0):
            raise UserError("without targets there is no attention and no hybrid encoder: attention none, alpha 0")
        width = backbone.channels[backbone.deepest]
        self.backbone = backbone
        self.projector = MLPHead(width, hidden_dim, dim)
        self.attention: TransformationAttention | None = None
        if attention != "none":
            self.attention = TransformationAttention(width, backbone.ndim + 4, attention, attention_rank, backbone.ndim)
        self.key_backbone, self.key_projector = Momentum(self.backbone), Momentum(self.projector)
        self.key_attention = Momentum(self.attention) if self.attention is not None else None
        self.queue = Queue(queue_size, dim)
        if targets != "none":
            self.decoder, self.head = build_decoder(backbone)
        self.turn_head = nn.Linear(width, 4) if predict_turns else None
        self.temperature, self.momentum, self.shuffle, self.contrast = temperature, momentum, shuffle, contrast
        self.standardize, self.targets, self.alpha, self.sigmoid = standardize, targets, alpha, sigmoid
        views = partial(self.views, targets=targets, windows=windows, min_iou=min_iou, painting=painting)
        self.views = views  # type: ignore[method-assign]
        if targets == "none":
            self.predicts_pixels = lambda: False  # type: ignore[method-assign]
        clean = ("first_clean", "second_clean", "first_target", "second_target")
        unused = {clean: targets == "none", ("mixed_target",): alpha == 0, ("rotated",): not predict_turns}
        self.unused_views = tuple(name for names, idle in unused.items() if idle for name in names)

    @staticmethod
    def views(
        augment: Augment | None = None,
        targets: Targets = "turns",
        windows: tuple[tuple[int, ...], ...] = (),
        min_iou: float = 0.2,
        painting: float = 0.9,
    ) -> dict[str, Declaration]:
        """Two corrupted crops, the same crops without corruption, and the targets: flips and turns of these."""
        view = (augment or Augment(jitter=0.0, grayscale=0.0)).random_view()
        view = replace(view, appearance=(Painting(painting), *view.appearance))
        first, second = (view, view) if not windows else window_views(view, windows, min_iou)
        flips, turn = ((0.5,) * 3 if targets in ("turns", "flips") else _SAME), targets == "turns"
        return {
            "first": first,
            "second": second,
            "first_clean": Turned("first", _SAME, quarter_turns=False, clean=True),
            "second_clean": Turned("second", _SAME, quarter_turns=False, clean=True),
            "first_target": Turned("first_clean", flips, turn),
            "second_target": Turned("second_clean", flips, turn),
            "mixed_target": Turned("first_clean", flips, turn),
            "rotated": Turned("first", _SAME, quarter_turns=True),
        }

    def before_step(self, batch: Batch) -> None:
        self.key_backbone.update(self.backbone, self.momentum)
        self.key_projector.update(self.projector, self.momentum)
        if self.key_attention is not None and self.attention is not None:
            self.key_attention.update(self.attention, self.momentum)

    def forward(self, batch: Batch) -> Losses:
        own, other, keys, (compared, *others) = self.encode(batch)
        q = self.unit(self.embed(self.projector, compared))
        with torch.no_grad():
            embedded = [self.embed(self.key_projector, features) for features in others]
            pushed = [q.detach(), *(self.unit(each) for each in embedded)]
        contrast = info_nce(q, pushed[1], self.queue.keys(), self.temperature).mean()
        for each in pushed:
            self.queue.enqueue(each)
        terms, statistics = {"instance_loss": contrast}, {"key_spread": deviation(embedded[0])}
        if self.targets != "none":
            pairs = self.predictions(batch, own, other, keys)
            named = zip(("ordinary", "momentum", "hybrid"), pairs, strict=False)
            terms |= {f"{name}_loss": F.mse_loss(full_precision(y), x) for name, (y, x) in named}
            statistics["output_spread"] = output_spread(*pairs[0])
        if self.turn_head is not None:
            terms["turn_loss"] = self.turn_loss(batch)
        rest = [value for name, value in terms.items() if name != "instance_loss"]
        total = 0.5 * contrast + 0.5 * torch.stack(rest).sum() if rest else contrast
        return Losses(total, {name: value.detach() for name, value in terms.items()}, statistics)

    def encode(self, batch: Batch) -> tuple[Maps, Maps, list[Maps], list[Tensor]]:
        """The maps of the ordinary encoder, of the momentum encoder before its attention, and of all others after it.

        The deepest of each has passed its attention; the third is the list of the momentum and the hybrid encoder. The
        last has the deepest maps of all three, as they are contrasted.
        """
        plain, other = self.backbone(batch["first"].pixels), self.encode_keys(batch)
        own = self.attend(self.attention, plain, batch, "first")
        with torch.no_grad():
            keys = [self.attend(self.key_attention, other, batch, "second")]
        before = [plain, other]
        if self.alpha:
            share = self.shares(batch)
            hybrid = {stage: mix(share, plain[stage], other[stage]) for stage in plain}
            before.append(hybrid)
            keys.append(self.attend(self.attention, hybrid, batch, "mixed"))
        contrasted = [own, *keys] if self.contrast == "after" else before
        return own, other, keys, [maps[self.backbone.deepest] for maps in contrasted]

    @torch.no_grad()
    def encode_keys(self, batch: Batch) -> Maps:
        """The maps of the momentum encoder."""
        pixels = batch["second"].pixels
        if not self.shuffle:
            return self.key_backbone(pixels)
        together = normalized_together(self.key_backbone, len(pixels))
        shuffle = Shuffle(len(pixels), batch.seed, batch.step, together)
        return {stage: shuffle.restore(x) for stage, x in self.key_backbone(shuffle.deal(pixels)).items()}

    def attend(self, attention: nn.Module | None, maps: Maps, batch: Batch, name: str) -> Maps:
        """The maps, with attention to the transformation of the target "NAME_target" on the deepest."""
        if attention is None:
            return maps
        vector = indicator(batch[f"{'first' if name == 'mixed' else name}_clean"].map, batch[f"{name}_target"].map)
        deepest = self.backbone.deepest
        return {**maps, deepest: attention(maps[deepest], vector.to(maps[deepest].device, non_blocking=True))}

    def embed(self, projector: nn.Module, features: Tensor) -> Tensor:
        """Embeddings (B, dim), neither standardized nor normalized, of the deepest maps."""
        return full_precision(projector(global_pool(features)))

    def unit(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, dim) as unit vectors."""
        return F.normalize(standardize(embeddings) if self.standardize else embeddings, dim=1)

    def shares(self, batch: Batch) -> Tensor:
        """Lambda of each image, (B,), on the CPU."""
        return beta(batch.uniform(1)[:, 0], self.alpha)

    def predictions(self, batch: Batch, own: Maps, other: Maps, keys: list[Maps]) -> list[tuple[Tensor, Tensor]]:
        """The predicted and the true targets of the ordinary, the momentum and the hybrid encoder."""
        targets = [batch["first_target"].pixels, batch["second_target"].pixels]
        if self.alpha:
            targets.append(self.mixed_target(batch))
        return [(self.decode(maps, x), x) for maps, x in zip((own, *keys), targets, strict=True)]

    def decode(self, maps: Maps, target: Tensor) -> Tensor:
        """Predicted pixels, in the shape of the target."""
        made = self.head(self.decoder(maps, target.shape[2:]))
        return torch.sigmoid(full_precision(made)) if self.sigmoid else made

    def mixed_target(self, batch: Batch) -> Tensor:
        """T_h(lambda X_o + (1 - lambda) X_m): both flipped and turned in the same way, then mixed."""
        first, view = batch["first_clean"].map[..., :-1], batch["mixed_target"]
        linear = torch.linalg.solve(first, view.map[..., :-1]).round() + 0.0  # no -0
        return mix(self.shares(batch), view.pixels, turned(batch["second_clean"].pixels, linear))

    def turn_loss(self, batch: Batch) -> Tensor:
        """The cross-entropy of the predicted quarter turns of the view "rotated"."""
        assert self.turn_head is not None
        turns = indicator(batch["first"].map, batch["rotated"].map)[:, -4:].argmax(1)
        scores = self.turn_head(global_pool(self.backbone(batch["rotated"].pixels)[self.backbone.deepest]))
        return F.cross_entropy(full_precision(scores), turns.to(scores.device, non_blocking=True))

    def prepare(self, images: PixelSource, given: Mapping[str, Any] = MappingProxyType({})) -> str | None:
        if self.sigmoid:
            check_unit_range(images.spec)
        return None

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        """For each image the targets T_o, T_m and T_h, one below the other."""
        if self.targets == "none":
            raise UserError("this run of pcrl has no targets and predicts no pixels; show one that has")
        pairs = self.predictions(batch, *self.encode(batch)[:3])
        inputs = [(batch[n].pixels, batch[f"{n}_clean"].pixels) for n in ("first", "second")]
        if self.alpha:
            inputs.append(tuple(mix(self.shares(batch), *each) for each in zip(*inputs, strict=True)))  # type: ignore
        view, clean = (torch.stack(each, dim=1).flatten(0, 1) for each in zip(*inputs, strict=True))
        made, true = (torch.stack(each, dim=1).flatten(0, 1) for each in zip(*pairs, strict=True))
        return Reconstruction(view, clean, true, made, torch.ones_like(true[:, :1], dtype=torch.bool))

    def exported_parts(self) -> dict[str, dict[str, Tensor]]:
        """The decoder and its head, with the names of Models Genesis or of segmentation_models_pytorch."""
        return {} if self.targets == "none" else {"decoder": decoder_state(self.decoder, self.head)}

    def check(self, sizes: Mapping[str, tuple[int, ...]], batch_size: int, processes: int = 1) -> None:
        super().check(sizes, batch_size, processes)
        self.queue.check_size(3 * batch_size)  # keys of three encoders join it

    def chance(self) -> Mapping[str, float]:
        return {"instance_loss": math.log(self.queue.size + 1)}
