"""The bare cost of a step: only the forward and backward passes that a method's definition requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.concepts.kmeans import KMeansConcepts
from densepath.core.masking import count_visible
from densepath.methods import (
    BYOL,
    C2L,
    CPC,
    DINO,
    EVA,
    IBOT,
    MAE,
    PCLV2,
    PCRL,
    VQKD,
    BEiTv2,
    Cellback,
    ConCL,
    ConvMIM,
    Cube,
    DenseCL,
    DINOIMix,
    DINOSup,
    DiRL,
    DiRLBYOL,
    DiRLSimCLR,
    EsViT,
    HIPTRegion,
    Method,
    MoCoV1,
    MoCoV2,
    ModelGenesis,
    PCRLReleased,
    SelfPatch,
    SemanticGenesis,
    SimCLR,
    SparK,
    Supervised,
    SwAV,
)
from densepath.methods.region_vectors import flat, region_vectors
from densepath.nets.backbones.transformer_parts import add_positions, embed_patches, encode, select_tokens
from densepath.nets.norms import plain_batch_norm
from densepath.training.compiled import compile_networks
from densepath.views.view import Batch, View


def bare_step(method: Method, views: Batch, compiled: bool = False) -> Callable[[], None]:
    """The passes of one step over prepared views, with plain batch norms for every method; compiled as the method."""
    for kind, passes in _PASSES.items():
        if type(method) is kind:
            plain = plain_batch_norm(method)
            if compiled and plain is not method:  # copies of compiled modules are not compiled
                compile_networks(plain)
            return lambda: passes(plain, views)
    raise ValueError(f"the bare passes of {type(method).__name__} are not defined here")


def encode_all(model: Any, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Replaces ``encode_visible`` in a dense step: encodes all patches, but returns only the visible ones."""
    patches = visible.nonzero()[:, 1].view(len(visible), -1).to(pixels.device, non_blocking=True)
    embeddings = embed_patches(model, pixels)
    tokens = encode(model, add_positions(model, embeddings))
    return select_tokens(model, tokens, patches), patches, embeddings.shape[1], embeddings.shape[2]


def _simclr(method: Any, views: Batch) -> None:
    """Both views forward and backward, in one batch."""
    pixels = torch.cat((views["first"].pixels, views["second"].pixels))
    _backward(method, method.head(_pooled(method.backbone(pixels)[method.backbone.deepest])))


def _byol(method: Any, views: Batch) -> None:
    """Each view forward and backward in the online network, and forward in the target."""
    predictions = []
    for name in ("first", "second"):
        pixels = views[name].pixels
        features = method.backbone(pixels)[method.backbone.deepest]
        predictions.append(method.predictor(method.projector(features.mean((2, 3)))))
        with torch.no_grad():
            method.target_projector(_pooled(method.target_backbone(pixels)[method.backbone.deepest]))
    _backward(method, *predictions)


def _moco_v2(method: Any, views: Batch) -> None:
    """Query forward and backward, key forward."""
    query = method.head(_pooled(method.backbone(views["query"].pixels)[method.backbone.deepest]))
    with torch.no_grad():
        method.key_head(_pooled(method.key_backbone(views["key"].pixels)[method.backbone.deepest]))
    _backward(method, query)


def _concl(method: Any, views: Batch) -> None:
    """As MoCo-v2, with the head on as many vectors as there are concepts, too; and for clustered concepts the reference
    forward up to the clustered stage."""
    if isinstance(method.source, KMeansConcepts):
        with torch.no_grad():
            method.key_backbone(views["reference"].pixels, last=method.source.stage)
    query = method.backbone(views["query"].pixels)[method.backbone.deepest]
    count, pooled = method.source.num_concepts or query[0, 0].numel(), _pooled(query)
    heads = method.head(pooled.repeat_interleave(count, 0)), method.head(pooled)
    with torch.no_grad():
        key = _pooled(method.key_backbone(views["key"].pixels)[method.backbone.deepest])
        method.key_head(key.repeat_interleave(count, 0))
        method.key_head(key)
    _backward(method, *heads)


def _densecl(method: Any, views: Batch) -> None:
    """As MoCo-v2, with a second head on the positions."""
    query = method.backbone(views["query"].pixels)[method.backbone.deepest]
    pooled, dense = method.head(query.mean((2, 3))), method.dense_head(query)
    with torch.no_grad():
        key = method.key_backbone(views["key"].pixels)[method.backbone.deepest]
        method.key_head(key.mean((2, 3)))
        method.key_dense_head(key)
    _backward(method, pooled, dense)


def _supervised(method: Any, views: Batch) -> None:
    """The view forward and backward."""
    _backward(method, method.classifier(_pooled(method.backbone(views["image"].pixels)[method.backbone.deepest])))


def _spark(method: Any, views: Batch) -> None:
    """The view forward and backward in the dense network and in the decoder on its maps."""
    maps = method.backbone(views["image"].pixels)
    dense = [densify.project(maps[stage]) for densify, stage in zip(method.densify, method.stages, strict=True)]
    _backward(method, method.decoder(dense))


def _eva(method: Any, views: Batch) -> None:
    """As MAE, plus the view forward in the teacher."""
    along = views["image"].pixels.shape[-1] // method.backbone.patch_size
    method.target(views["image"].pixels, along)
    _visible(method, method.head, views)


def _vq_kd(method: Any, views: Batch) -> None:
    """The view forward and backward in encoder and decoder, plus forward in the teacher."""
    pixels = views["image"].pixels
    grid = pixels.shape[-1] // method.tokenizer.backbone.patch_size
    method.target(pixels, grid)
    _backward(method, method.decode(method.tokenizer.embed(pixels), grid))


def _beit_v2(method: Any, views: Batch) -> None:
    """The view forward and backward in network, early head and classifier, plus forward in the tokenizer."""
    pixels = views["image"].pixels
    mask = method.draw_mask(views, pixels.shape[2:])
    method.target.network.embed(pixels)
    chosen = mask.nonzero()[:, 1].view(len(mask), -1).to(pixels.device)
    outputs = method.encode(pixels, mask.to(pixels.device))
    _backward(method, *(method.classify(tokens, chosen) for tokens in outputs))


def _mae(method: Any, views: Batch) -> None:
    """The visible patches forward and backward in the encoder, and all patches in the decoder."""
    _visible(method, method.decoder, views)


def _visible(method: Any, decoder: nn.Module, views: Batch) -> None:
    pixels = views["image"].pixels
    model, along = method.backbone.net.model, pixels.shape[-1] // method.backbone.patch_size
    count = count_visible(along**2, method.mask_ratio)
    kept = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
    tokens = model._pos_embed(model.patch_embed(pixels))[:, : model.num_prefix_tokens + count]
    _backward(method, decoder(model.norm(model.blocks(tokens)), kept, along, along))


def _conv_mim(method: Any, views: Batch) -> None:
    """The query forward and backward in encoder and decoder, without warping to the target."""
    visible = method.draw_visible(views)
    maps = method.encoder(method.backbone, views["query"].pixels, visible)
    sizes = [visible.patches.shape[-1] * n for n in method.positions]
    fitting = [z if z.shape[-1] == n else F.interpolate(z, (n, n)) for z, n in zip(maps, sizes, strict=True)]
    _backward(method, method.decoder(fitting))


def _dino(method: Any, views: Batch) -> None:
    """Crops of each size forward and backward, with stochastic depth, the global ones forward in the teacher; heads."""
    _distill(method, views, method.crops(views))


def _ibot(method: Any, views: Batch) -> None:
    """As DINO, with heads on all patches of the teacher, and on the masked ones of the student."""
    masked = method.with_masks(views)
    _distill(method, masked, method.seen(masked, method.crops(masked)))


def _distill(method: Any, views: Batch, sizes: list[View]) -> None:
    own = {name: name if name in method.heads else "image" for name in method.weights}
    with torch.no_grad():
        taught = method.teach(views, sizes)
        for name, head in own.items():
            method.teacher_heads.network[head](flat(taught[name])[0])
    learned = [method.represent(views, crops) for crops in method.dropping(views, sizes)]
    outputs = {name: torch.cat([flat(of[name])[0] for of in learned]) for name in own}
    _backward(method, *(method.heads[own[name]](vectors) for name, vectors in outputs.items()))


def _dirl_simclr(method: Any, views: Batch) -> None:
    """Both views forward and backward together; a head on each vector."""
    vectors = region_vectors(method.prior, views, method.both(views), method.backbone, method.block)
    _backward(method, *(head(vectors[name][0]) for name, head in method.heads.items()))


def _dirl_byol(method: Any, views: Batch) -> None:
    """Both views forward and backward together, and forward in the target; heads on each vector."""
    both = method.both(views)
    with torch.no_grad():
        block = method.target_block and method.target_block.network
        target = region_vectors(method.prior, views, both, method.target_backbone.network, block)
        for name, head in method.target_projectors.network.items():
            head(target[name][0])
    vectors = region_vectors(method.prior, views, both, method.backbone, method.block)
    _backward(method, *(method.predictors[name](head(vectors[name][0])) for name, head in method.projectors.items()))


def _pcrl(method: Any, views: Batch) -> None:
    """One view forward and backward, the other forward; three maps through the attention and in the decoder."""
    first, second = views["first"].pixels, views["second"].pixels
    plain, deepest = method.backbone(first), method.backbone.deepest
    own = method.attend(method.attention, plain, views, "first")
    with torch.no_grad():
        before = method.key_backbone(second)
        other = method.attend(method.key_attention, before, views, "second")
        method.key_projector(_pooled(other[deepest]))
    hybrid = method.attend(method.attention, {stage: plain[stage] + before[stage] for stage in plain}, views, "mixed")
    pixels = [method.head(method.decoder(maps, first.shape[2:])) for maps in (own, other, hybrid)]
    _backward(method, method.projector(_pooled(own[deepest])), *pixels)


def _c2l(method: Any, views: Batch) -> None:
    """Both views and their mixtures: one forward and backward, the other forward."""
    embeddings = []
    for _ in range(2):
        embeddings.append(method.head(_pooled(method.backbone(views["first"].pixels)[method.backbone.deepest])))
        with torch.no_grad():
            method.key_head(_pooled(method.key_backbone(views["second"].pixels)[method.backbone.deepest]))
    _backward(method, *embeddings)


def _pcrl_released(method: Any, views: Batch) -> None:
    """As C2L, and two maps of each forward and backward in the decoder."""
    outputs, size = [], views["first"].pixels.shape[2:]
    for _ in range(2):
        own = method.backbone(views["first"].pixels)
        with torch.no_grad():
            other = method.key_backbone(views["second"].pixels)
            method.key_head(_pooled(other[method.backbone.deepest]))
        hybrid = {stage: own[stage] + other[stage] for stage in own}
        outputs.append(method.head(_pooled(own[method.backbone.deepest])))
        outputs += [method.pixels(method.decoder(maps, size)) for maps in (own, hybrid)]
    _backward(method, *outputs)


def _model_genesis(method: Any, views: Batch) -> None:
    """The view forward and backward in the encoder and the decoder."""
    pixels = views["image"].pixels
    _backward(method, method.head(method.decoder(method.backbone(pixels), pixels.shape[2:])))


def _semantic_genesis(method: Any, views: Batch) -> None:
    """As Model Genesis, with the classifier."""
    pixels = views["image"].pixels
    maps = method.backbone(pixels)
    scores = method.classifier(maps[method.backbone.deepest])
    _backward(method, scores, method.head(method.decoder(maps, pixels.shape[2:])))


def _cube(method: Any, views: Batch) -> None:
    """As Model Genesis, and the discriminator on the prediction twice and on the target."""
    made = method.predict(views["image"].pixels)
    judged = [method.judge(made, frozen=True), method.judge(made.detach()), method.judge(views["target"].pixels)]
    _backward(method, made, *judged)


def _cpc(method: Any, views: Batch) -> None:
    """Each patch forward and backward, the GRU and the predictors."""
    context = method.read(method.encode(views["image"].pixels))
    _backward(method, *(layer(context) for layer in method.predictors))


def _swav(method: Any, views: Batch) -> None:
    """Crops of each size forward and backward."""
    together = torch.cat((views["first"].pixels, views["second"].pixels))
    sizes = [together, *(views[name].pixels for name in ("local",) if name in views.views)]
    pooled = torch.cat([_pooled(method.backbone(x)[method.backbone.deepest]) for x in sizes])
    _backward(method, method.projector(pooled) @ method.prototypes().T)


_PASSES: dict[type, Callable[[Any, Batch], None]] = {
    SimCLR: _simclr,
    BYOL: _byol,
    MoCoV1: _moco_v2,
    MoCoV2: _moco_v2,
    DenseCL: _densecl,
    ConCL: _concl,
    PCLV2: _moco_v2,
    Supervised: _supervised,
    SparK: _spark,
    MAE: _mae,
    ConvMIM: _conv_mim,
    EVA: _eva,
    VQKD: _vq_kd,
    BEiTv2: _beit_v2,
    DINO: _dino,
    DINOIMix: _dino,
    Cellback: _dino,
    DiRL: _dino,
    EsViT: _dino,
    SelfPatch: _dino,
    IBOT: _ibot,
    HIPTRegion: _dino,
    DINOSup: _dino,
    DiRLSimCLR: _dirl_simclr,
    DiRLBYOL: _dirl_byol,
    PCRL: _pcrl,
    PCRLReleased: _pcrl_released,
    C2L: _c2l,
    ModelGenesis: _model_genesis,
    SemanticGenesis: _semantic_genesis,
    Cube: _cube,
    CPC: _cpc,
    SwAV: _swav,
}


def _pooled(features: Tensor) -> Tensor:
    """(B, C, *spatial) as (B, C)."""
    return features.mean(tuple(range(2, features.ndim)))


def _backward(method: nn.Module, *outputs: Tensor) -> None:
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    for parameter in method.parameters():
        parameter.grad = None
