"""Code that loads exported weights, for their model cards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from densepath.nets.backbones import Backbone
from densepath.nets.backbones.names import OWN_PARTS, parse_name
from densepath.nets.backbones.resnet3d import ResNet3D, is_for_volumes

_OWN = """```python
from densepath.nets.weights.pretrained import pretrained_backbone

backbone, pixels, _, _ = pretrained_backbone({file!r})  # backbone(images) -> the map of each stage
```"""
_TIMM = """```python
{imports}

model = timm.create_model({arguments})
```"""
_TORCHVISION = """```python
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{name}()
model.load_state_dict(load_file({file!r}), strict=False)  # lacks only the classifier
```"""
_DETECTRON2 = """```python
from detectron2.checkpoint import DetectionCheckpointer

DetectionCheckpointer(model).load({file!r})  # a model with build_resnet_backbone or build_resnet_fpn_backbone
```

The configuration must have `INPUT.FORMAT: RGB`, `MODEL.RESNETS.STRIDE_IN_1X1: False`, and as `PIXEL_MEAN` and
`PIXEL_STD` the mean and std above times 255."""
_MODELS_GENESIS = """```python
import torch
import unet3d  # of MrGiovanni/ModelsGenesis

model = torch.nn.DataParallel(unet3d.UNet3D())
model.load_state_dict(torch.load({file!r})["state_dict"])
```"""
_MONAI = """```python
import torch
from monai.networks.nets import ResNet

model = ResNet(
    "basic",
    {blocks},
    {widths},
    n_input_channels={channels},
    conv1_t_size={sizes},
    conv1_t_stride={strides},
    no_max_pool=True,
    bias_downsample=False,
)
model.load_state_dict(torch.load({file!r})["state_dict"], strict=False)  # lacks only the classifier
```"""
_NNUNET = """```
nnUNetv2_train DATASET 3d_fullres FOLD -p PLANS -pretrained_weights {file}
```

for plans of ResEnc-L with six stages, kernels of 3 and strides of 2 along all axes. densepath's docs/volumes.md has the
code for other plans."""
_STATE = """```python
from safetensors.torch import load_file

tensors = load_file({file!r})
```"""


def loading_code(path: Path, backbone: Backbone | None, layout: str, notes: Mapping[str, str]) -> str:
    """Markdown with the code that loads a file of weights in its library, and in densepath.

    Args:
        path: the file.
        backbone: what it contains; None for tensors of an unknown network.
        layout: its layout.
        notes: its metadata.
    """
    file = path.name
    plain = backbone is not None and backbone.name == backbone.architecture
    if backbone is None or not (plain and (backbone.library == "timm" or is_for_volumes(backbone.name))):
        return _STATE.format(file=file)
    if isinstance(backbone, ResNet3D) and layout == "monai":
        return _MONAI.format(file=file, **backbone.monai_options())
    if layout in (others := {"models_genesis": _MODELS_GENESIS, "nnunet": _NNUNET}):
        return others[layout].format(file=file)
    own = _OWN.format(file=file)
    if backbone.library != "timm" or OWN_PARTS & parse_name(backbone.name)[1].keys():
        return own
    if layout == "timm":
        return f"{_timm(file, backbone)}\n\n{own}"
    if layout == "torchvision":
        return f"{_TORCHVISION.format(name=backbone.name, file=file)}\n\n{own}"
    code = _STATE.format(file=file) if path.suffix == ".safetensors" else _DETECTRON2.format(file=file)
    return f"{code}\n\n{own}"


def _timm(file: str, backbone: Backbone) -> str:
    architecture, arguments = parse_name(backbone.name)
    imports, written = ["import timm"], {key: repr(value) for key, value in arguments.items()}
    plain = "pos_offset" in written or written.get("pos_antialias") == "False"
    written = {key: value for key, value in written.items() if key not in ("pos_offset", "pos_antialias")}
    if "mlp_layer" in arguments:
        written["mlp_layer"] = f"timm.layers.{arguments['mlp_layer']}"
    if "norm_eps" in written:
        imports = ["from functools import partial", "", "import timm", "import torch"]
        written["norm_layer"] = f"partial(torch.nn.LayerNorm, eps={written.pop('norm_eps')})"
    if backbone.in_channels != 3:
        written["in_chans"] = str(backbone.in_channels)
    given = [repr(architecture), "num_classes=0", *(f"{key}={value}" for key, value in written.items())]
    code = _TIMM.format(imports="\n".join(imports), arguments=", ".join([*given, f"checkpoint_path={file!r}"]))
    if plain:
        code += "\n\nFor images of other sizes timm interpolates the positions with antialiasing, densepath without."
    return code
