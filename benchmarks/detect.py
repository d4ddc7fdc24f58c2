"""Fine-tuning and evaluation of a detector by densepath, and by torchvision's reference loop on the same model.

The reference reads the same COCO file with ``torchvision.datasets.CocoDetection`` and the transforms of torchvision's
detection references (flip, resize of the short edge, normalization), image by image, in the same number of workers.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from benchmarks.measure import in_turns, parser, ratio, report
from densepath.annotations.coco import open_split
from densepath.sources.pixel_source import PixelSpec
from densepath.synthetic.tissue import write_tissue
from densepath.training.hardware import Hardware, choose_hardware, keep_freed_memory
from densepath.transfer.detection.detection_task import DetectionTask
from densepath.transfer.detection.detector_file import DetectorNotes
from densepath.transfer.detection.detectors import DETECTORS
from densepath.transfer.detection.evaluation import evaluate_detector
from densepath.transfer.detection.samples import LONGEST, TrainingBatches, into_detector, padded
from densepath.transfer.detection.solver import make_solver

_CALLS = 4
_RGB = PixelSpec()


def training_step(task: DetectionTask, hardware: Hardware) -> Callable[[Callable[[], torch.Tensor]], None]:
    """One training step: losses, gradients, weights."""
    updates = task.updates()

    def step(total_loss: Callable[[], torch.Tensor]) -> None:
        with torch.autocast(hardware.kind, torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
            loss = total_loss()
        loss.backward()
        updates.optimizer.step()
        updates.schedule.step()
        updates.optimizer.zero_grad()

    return step


def ours(task: DetectionTask, batches: TrainingBatches, hardware: Hardware) -> Iterator[None]:
    """Steps as in ``densepath detect``."""
    step = training_step(task, hardware)
    for batch in batches:
        inputs = task.inputs(batch)
        step(lambda inputs=inputs: task(inputs)["loss"])
        yield


def reference(task: DetectionTask, loader: Any, hardware: Hardware) -> Iterator[None]:
    """Steps of torchvision's reference loop."""
    step = training_step(task, hardware)
    for images, found in _endless(loader):
        targets = [
            {key: target[key].to(hardware.device) for key in ("boxes", "labels", "masks")}
            | {"scale": torch.ones(4, device=hardware.device)}
            for target in found
        ]
        shown = padded([image.to(hardware.device) for image in images])
        shown.tensors = shown.tensors.contiguous(memory_format=hardware.memory_format)
        step(lambda shown=shown, targets=targets: torch.stack(list(task.model(shown, targets).values())).sum())
        yield


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def reference_loader(data: Path, sizes: tuple[int, int], batch_size: int, workers: int) -> Any:
    """The data set and transforms of torchvision's references."""
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(),
            v2.RandomShortestSize(list(range(sizes[0], sizes[1] + 1)), max_size=LONGEST),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(_RGB.mean, _RGB.std),
        ]
    )
    split = open_split(data, "train")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints messages
        plain = datasets.CocoDetection(split.folder, split.annotations, transforms=transforms)
    dataset = datasets.wrap_dataset_for_transforms_v2(plain, target_keys=("boxes", "labels", "masks"))
    outlined = [row for row, image in enumerate(plain.ids) if plain.coco.getAnnIds(image)]  # as in the references
    return DataLoader(
        Subset(dataset, outlined),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        collate_fn=lambda rows: tuple(zip(*rows, strict=True)),
    )


def evaluation(task: DetectionTask, notes: DetectorNotes, data: Path, hardware: Hardware) -> dict[str, float]:
    """Seconds per image of the whole evaluation, and of its forward passes."""
    test = open_split(data, "test")
    half = hardware.precision == "bf16-mixed"
    task.model.eval()

    def forward() -> None:
        for position in range(len(test)):
            shown = test.sample(position, masks=False) | {"short_edge": notes.test_size, "flip": False}
            images, _ = into_detector([shown], notes.spec, hardware.device)
            with torch.autocast(hardware.kind, torch.bfloat16, enabled=half):
                task.model.detect(images)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
            evaluate_detector(task.model, notes, test, Path(out), pictures=0, bfloat16=half)

    seconds = in_turns({"whole": whole, "forward": forward}, 3, hardware.device, warmup=1)
    return {
        "images_per_second": len(test) / statistics.median(seconds["whole"]),
        "forward_images_per_second": len(test) / statistics.median(seconds["forward"]),
        "evaluation/forward": ratio(seconds["whole"], seconds["forward"]),
    }


def main() -> None:
    """Measure training, alternating between both, then evaluation."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--detector", default="mask_rcnn_fpn_small", choices=DETECTORS)
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--train_size", type=int, nargs=2, default=(192, 256))
    made.add_argument("--test_size", type=int, default=256)
    made.add_argument("--image_size", type=int, default=256, help="size of procedural tissue images in pixels")
    made.add_argument("--batch_size", type=int, default=4)
    made.add_argument("--workers", type=int, default=0)
    made.add_argument("--device", default="auto")
    asked = made.parse_args()
    hardware = choose_hardware(asked.device)
    keep_freed_memory(hardware)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(asked.data or Path(scratch, "tissue"))
        if not asked.data:
            write_tissue(data, train=16, test=8, size=asked.image_size, seed=0)
        rows = measure(data, asked, hardware)
    report(f"{asked.detector}, {asked.backbone}, {hardware.kind}, {hardware.precision}", rows, asked.json)


def measure(data: Path, asked: Any, hardware: Hardware) -> list[dict[str, Any]]:
    """The rows of the table."""
    torch.manual_seed(0)
    train = open_split(data, "train")
    names = tuple(str(number) for number in train.category_ids)
    notes = DetectorNotes(
        asked.detector, asked.backbone, tuple(train.category_ids), names, asked.test_size, _RGB.mean, _RGB.std
    )
    sizes = (asked.train_size[0], asked.train_size[1])
    steps = (asked.repeats + 1) * _CALLS + 1
    task = DetectionTask(
        notes.build().to(hardware.device, memory_format=hardware.memory_format),
        notes,
        make_solver("1x", 1000, batch_size=asked.batch_size, lr=0.001),
        memory_format=hardware.memory_format,
    )
    batches = TrainingBatches(train, asked.batch_size, steps, 0, sizes, workers=asked.workers)
    loader = reference_loader(data, sizes, asked.batch_size, asked.workers)
    loops = {"densepath": ours(task, batches, hardware), "torchvision": reference(task, loader, hardware)}
    cases = {name: lambda loop=loop: next(loop) for name, loop in loops.items()}
    # Several steps per round: batches prepared during the round of the other loop have little influence.
    seconds = in_turns(cases, asked.repeats, hardware.device, warmup=1, calls=_CALLS)
    rows: list[dict[str, Any]] = [
        {"case": f"training, {name}", "images_per_second": asked.batch_size / statistics.median(values)}
        for name, values in seconds.items()
    ]
    rows[0]["torchvision/densepath"] = ratio(seconds["torchvision"], seconds["densepath"])
    return [*rows, {"case": "evaluation, densepath"} | evaluation(task, notes, data, hardware)]


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
