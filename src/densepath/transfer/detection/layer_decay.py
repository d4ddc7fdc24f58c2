"""Parameter groups with layer-wise learning rate decay for a detector on a transformer."""

from __future__ import annotations

from typing import Any

from torch import nn

from densepath.transfer.detection.windowed_transformer import WindowedTransformer

_LAYER_DECAY = 0.7  # ViTDet's for ViT-B
_WEIGHT_DECAY = 0.1


def layer_groups(model: nn.Module, transformer: WindowedTransformer, lr: float) -> list[dict[str, Any]]:
    """Group all trainable parameters by learning rate and weight decay.

    The last block has 0.7 of the learning rate, the one before it 0.7**2, and so on down to the patch embedding;
    layers after the blocks have the full rate. Norms, biases and position embeddings have no weight decay; in
    Detectron2 biases and relative positions have it. The first group has the full rate, which is logged.

    Args:
        model: the detector.
        transformer: its transformer.
        lr: the full learning rate.

    Source: Bao et al., "BEiT", ICLR 2022; the constants are those of Li et al., "Exploring plain vision transformer
    backbones for object detection" (ViTDet), ECCV 2022, appendix A.
    """
    layers = transformer.layers()
    below = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer}
    positions = {id(p) for p in transformer.positions()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in positions
            groups.setdefault((below.get(id(parameter), 0), decays), []).append(parameter)
    return [
        {"params": members, "lr": lr * _LAYER_DECAY**depth, "weight_decay": _WEIGHT_DECAY if decays else 0.0}
        for (depth, decays), members in sorted(groups.items(), key=lambda group: group[0])
    ]
