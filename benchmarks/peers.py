"""MoCo-v2, DenseCL and DINO from lightly's own modules and transforms, as in its documentation.

``python -m benchmarks.peers --method moco_v2 --data FOLDER`` trains one of them with Lightning and prints images/s;
``--save WEIGHTS`` keeps its backbone with timm's names.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import logging
import time
import warnings
from typing import Any

import lightning as L
import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models.modules import DenseCLProjectionHead, DINOProjectionHead, MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, select_most_similar, update_momentum
from lightly.transforms import DenseCLTransform, DINOTransform, MoCoV2Transform
from safetensors.torch import save_file
from torch import Tensor, nn

MOMENTUM, MEMORY = 0.999, 16384
PROTOTYPES, LOCAL_CROPS = 65_536, 8


class LightlyMoCoV2(nn.Module):
    """MoCo-v2: one head on pooled features."""

    transform = MoCoV2Transform

    def __init__(self, backbone: str, momentum: float = MOMENTUM, memory: int = MEMORY) -> None:
        super().__init__()
        self.momentum = momentum
        self.backbone = timm.create_model(backbone, num_classes=0)
        self.head = MoCoProjectionHead(self.backbone.num_features, 512, 128)
        self.backbone_momentum, self.head_momentum = _copies(self.backbone, self.head)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(memory, 128))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        update_momentum(self.backbone, self.backbone_momentum, self.momentum)
        update_momentum(self.head, self.head_momentum, self.momentum)
        q = self.head(self.backbone(query))
        with torch.no_grad():
            k = self.head_momentum(self.backbone_momentum(key))
        return self.criterion(q, k)


class LightlyDenseCL(nn.Module):
    """DenseCL: a head on pooled features and one on each position, matched by the similarity of features."""

    transform = DenseCLTransform

    def __init__(self, backbone: str, momentum: float = MOMENTUM, memory: int = MEMORY) -> None:
        super().__init__()
        self.momentum = momentum
        self.backbone = timm.create_model(backbone, num_classes=0, global_pool="")
        width = self.backbone.num_features
        self.head_global = DenseCLProjectionHead(width, 512, 128)
        self.head_local = DenseCLProjectionHead(width, 512, 128)
        copies = _copies(self.backbone, self.head_global, self.head_local)
        self.backbone_momentum, self.head_global_momentum, self.head_local_momentum = copies
        self.criterion_global = NTXentLoss(temperature=0.2, memory_bank_size=(memory, 128))
        self.criterion_local = NTXentLoss(temperature=0.2, memory_bank_size=(memory, 128))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        for slow, fast in (
            (self.backbone_momentum, self.backbone),
            (self.head_global_momentum, self.head_global),
            (self.head_local_momentum, self.head_local),
        ):
            update_momentum(fast, slow, self.momentum)
        q, q_global, q_local = _dense(query, self.backbone, self.head_global, self.head_local)
        with torch.no_grad():
            momentum = (self.backbone_momentum, self.head_global_momentum, self.head_local_momentum)
            k, k_global, k_local = _dense(key, *momentum)
        k_local = select_most_similar(q, k, k_local)
        local = self.criterion_local(q_local.flatten(end_dim=1), k_local.flatten(end_dim=1))
        return 0.5 * self.criterion_global(q_global, k_global) + 0.5 * local


class LightlyDINO(nn.Module):
    """DINO: a transformer of timm, one crop after another; the head and the prototypes of the paper."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        name, _, options = backbone.removesuffix(")").partition("(")
        given = dict(pair.split("=") for pair in options.split(", ")) if options else {}
        self.backbone = timm.create_model(
            name, num_classes=0, dynamic_img_size=True, **{key: ast.literal_eval(value) for key, value in given.items()}
        )
        width = self.backbone.num_features
        self.head = DINOProjectionHead(width, 2048, 256, PROTOTYPES, freeze_last_layer=1)
        (self.teacher,) = _copies(self.backbone)
        self.teacher_head = DINOProjectionHead(width, 2048, 256, PROTOTYPES)  # no copies of weight norms
        self.teacher_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=PROTOTYPES)

    @staticmethod
    def transform(input_size: int) -> DINOTransform:
        """Two crops of a size, and eight of 96 / 224 of it."""
        local = round(input_size * 96 / 224)
        return DINOTransform(global_crop_size=input_size, local_crop_size=local, n_local_views=LOCAL_CROPS)

    def forward(self, *views: Tensor) -> Tensor:
        update_momentum(self.backbone, self.teacher, MOMENTUM)
        update_momentum(self.head, self.teacher_head, MOMENTUM)
        with torch.no_grad():
            taught = [self.teacher_head(self.teacher(view)) for view in views[:2]]
        return self.criterion(taught, [self.head(self.backbone(view)) for view in views], epoch=0)


METHODS: dict[str, Any] = {"moco_v2": LightlyMoCoV2, "densecl": LightlyDenseCL, "dino": LightlyDINO}


def _copies(*modules: nn.Module) -> list[Any]:
    copies = [copy.deepcopy(module) for module in modules]
    for module in copies:
        deactivate_requires_grad(module)
    return copies


def _dense(
    x: Tensor, backbone: nn.Module, head_global: nn.Module, head_local: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    features = backbone(x)
    dense = features.flatten(start_dim=2).permute(0, 2, 1)
    return dense, head_global(features.mean((2, 3))), head_local(dense)


class PeerModule(L.LightningModule):
    """Trains as in lightly's documentation: SGD (DINO: AdamW), no schedule."""

    def __init__(self, method: nn.Module, lr: float) -> None:
        super().__init__()
        self.method, self.lr = method, lr
        self.ends: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.method(*batch[0])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if isinstance(self.method, LightlyDINO):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.04)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)


def loader(method: str, data: str, size: int, batch_size: int, workers: int, device: str) -> Any:
    """lightly's own data loader."""
    dataset = LightlyDataset(data, transform=METHODS[method].transform(input_size=size))
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device == "cuda",
        persistent_workers=workers > 0,
    )


def main() -> None:
    """Train for some steps and print images per second after the first ones."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--method", choices=METHODS, default="moco_v2")
    made.add_argument("--data", required=True)
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--size", type=int, default=224)
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--workers", type=int, default=2)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--skip", type=int, default=5, help="first steps that are not measured")
    made.add_argument("--lr", type=float, default=0.03, help="of MoCo-v2 and DenseCL, as are momentum and memory")
    made.add_argument("--momentum", type=float, default=MOMENTUM, help="of the momentum encoder")
    made.add_argument("--memory", type=int, default=MEMORY, help="keys of the memory bank")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--save", metavar="WEIGHTS", help="where the backbone is written, as safetensors")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--precision", default="32-true")
    made.add_argument("--channels_last", action="store_true")
    asked = made.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(asked.seed, workers=True, verbose=False)
    options = {} if asked.method == "dino" else {"momentum": asked.momentum, "memory": asked.memory}
    module = PeerModule(METHODS[asked.method](asked.backbone, **options), asked.lr)
    if asked.channels_last:
        module.to(memory_format=torch.channels_last)
    trainer = L.Trainer(
        accelerator=asked.device,
        devices=1,
        max_steps=asked.steps,
        precision=asked.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = loader(asked.method, asked.data, asked.size, asked.batch_size, asked.workers, asked.device)
    trainer.fit(module, batches)
    seconds = module.ends[-1] - module.ends[asked.skip - 1]
    if asked.save:
        save_file({name: value.contiguous() for name, value in module.method.backbone.state_dict().items()}, asked.save)
    print(json.dumps({"images_per_second": (asked.steps - asked.skip) * asked.batch_size / seconds}))


if __name__ == "__main__":
    main()
