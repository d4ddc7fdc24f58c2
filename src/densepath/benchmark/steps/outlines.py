"""The steps on outlined objects: the linear probe of pixels, detectors, Segment Anything."""

from __future__ import annotations

import inspect

from densepath.benchmark.labelled_sets import LabelledSet, read_outlined
from densepath.benchmark.steps.step import Options, Step
from densepath.runs.checkpoints import CHECKPOINTS
from densepath.transfer.detection.config import DetectConfig
from densepath.transfer.detection.detectors import TRANSFORMER_DETECTORS
from densepath.transfer.detection.object_metrics import OBJECT_METRICS
from densepath.transfer.detection.solver import make_solver
from densepath.transfer.probe.pixels import probe_pixels
from densepath.transfer.sam.sam import sam

_AP = ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")


def _of_probe(options: Options, data: LabelledSet) -> int:
    return len(data.train.names) + len(data.test.names)


def _of_detect(options: Options, data: LabelledSet) -> int:
    values = {name: DETECT.default(name) for name in inspect.signature(DetectConfig).parameters} | dict(options)
    known = inspect.signature(make_solver).parameters
    steps = make_solver(**{name: value for name, value in values.items() if name in known}).steps
    has_batch_norms = values["detector"] not in TRANSFORMER_DETECTORS
    settling = min(values["precise_bn_batches"], steps) if has_batch_norms else 0
    return (steps + settling) * values["batch_size"] + len(data.test.names)


PROBE = Step(
    "probe",
    probe_pixels,
    metrics=("mean_iou", "iou_object", "iou_rest", "dice", "accuracy"),
    read=read_outlined,
    images=_of_probe,
    resumes=False,
    one_device=True,
    written="scores.json",
)
DETECT = Step(
    "detect",
    DetectConfig,
    metrics=(*_AP, *OBJECT_METRICS),
    read=read_outlined,
    images=_of_detect,
    recipes="detect",
    scratch=(CHECKPOINTS,),  # half a gigabyte per detector
)
SAM = Step("sam", sam, metrics=_AP, read=read_outlined, draws=False, resumes=False)
