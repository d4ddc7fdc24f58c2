"""Features of images: ``densepath.embed``, and the bare forward passes of the same network on the same batches.

The bare passes see normalized tensors in memory, in the same memory layout and precision, and pool their last map. What
is measured of ``embed`` is all that it does after loading the weights: reading, normalizing, pooling, writing the file.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import in_turns, parser, ratio, report
from densepath.sources.corrupt import refuse_passing
from densepath.sources.packing import pack
from densepath.synthetic.tissue import write_tiles
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.transfer.embed.blocks import Block, Blocks
from densepath.transfer.embed.encode import batches_of, collect, encode
from densepath.transfer.embed.encoder import Encoder, load_encoder
from densepath.transfer.embed.feature_file import Shape, write_features
from densepath.transfer.embed.inputs import Inputs, open_source


@torch.inference_mode()
def bare(encoder: Encoder, batches: list[Tensor], hardware: Hardware) -> Tensor:
    """The pooled features of normalized batches (B, C, H, W)."""
    with torch.autocast(hardware.kind, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
        found = [encoder.backbone(x)[encoder.stage].float().mean((2, 3)) for x in batches]
    return torch.cat(found).cpu()


def whole(encoder: Encoder, inputs: Inputs, hardware: Hardware, batch_size: int, folder: Path) -> None:
    """What ``embed`` does after loading the weights."""
    blocks = Blocks(folder, inputs, batch_size, "float32")
    half = hardware.precision == "bf16-mixed"
    for block in range(len(blocks)):
        batches = batches_of(blocks.positions(block), batch_size)
        positions, features, damaged, failed = collect(encode(encoder, inputs, batches, hardware.device, half))
        refuse_passing(failed)
        blocks.write(block, Block(positions, features, damaged))
    parts = (([inputs.names[position] for position in block.positions], block.features) for block in blocks.read())
    length = sum(map(len, inputs.names))
    write_features(folder / "out.safetensors", parts, Shape(len(inputs), encoder.dim, "float32", length), {})


def main() -> None:
    """Measure files and a packed store, each in turns with the bare passes."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--images", type=int, default=256)
    made.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    made.add_argument("--batch_size", type=int, default=64)
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--device", default="auto")
    made.add_argument("--precision", default="auto")
    asked = made.parse_args()
    hardware = choose_hardware(asked.device, asked.precision)
    keep_freed_memory(hardware)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "tiles")
        write_tiles(files, asked.images, size=asked.size)
        sources = {"files": files, "packed": pack(files, Path(folder, "tiles.safetensors"))}
        rows = [_row(name, data, asked, hardware, Path(folder, name)) for name, data in sources.items()]
    title = f"{asked.backbone}, {asked.images} images of {asked.size} px, {hardware.kind}, {hardware.precision}"
    report(title, rows, asked.json)


def _row(name: str, data: Path, asked: Any, hardware: Hardware, folder: Path) -> dict[str, Any]:
    source = open_source(data)
    encoder, _ = load_encoder("random", asked.backbone, source, pool="mean")
    hardware.lay_out(encoder)
    encoder.to(hardware.device)
    inputs = Inputs(source, data, encoder.spec, None)
    batches = []
    for batch in batches_of(range(len(inputs)), asked.batch_size):
        pixels = torch.stack([torch.from_numpy(source.read(position)) for position in batch])
        x = encoder.spec.normalize(encoder.spec.apply_window(pixels.movedim(-1, 1).float()))
        batches.append(x.to(hardware.device, memory_format=hardware.memory_format))
    cases = {
        "embed": lambda: whole(encoder, inputs, hardware, asked.batch_size, folder),
        "bare": lambda: bare(encoder, batches, hardware),
    }
    seconds = in_turns(cases, asked.repeats, hardware.device, warmup=1)
    return {
        "case": name,
        "embed images per second": len(inputs) / statistics.median(seconds["embed"]),
        "bare images per second": len(inputs) / statistics.median(seconds["bare"]),
        "speed / bare": ratio(seconds["bare"], seconds["embed"]),
    }


if __name__ == "__main__":
    main()
