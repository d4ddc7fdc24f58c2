"""The verbs of the command line, each of which calls a public function whose signature is its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from densepath.command import Command


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Args:
        function: "module:name" of its function, imported only when the verb is used, because most need torch.
        help: a line for the list of verbs.
        positional: parameters that are given without their name, in this order.
        schema: "module:name" of the dataclass of its options; None for the function's own signature.
        recipes, renamed: as for :class:`~densepath.command.Command`.
    """

    function: str
    help: str
    positional: tuple[str, ...] = ()
    schema: str | None = None
    recipes: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def command(self, name: str) -> Command:
        """The verb with its options."""
        schema = _load(self.schema) if self.schema else None
        return Command(f"densepath {name}", _load(self.function), self.positional, schema, self.recipes, self.renamed)


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"densepath.{module}"), name)
    return function


def _store(module: str, function: str, what: str, options: str = "conversion:Conversion") -> Verb:
    """A verb that converts a data set to a store of volumes."""
    place = "datasets.volumes"
    help_ = f"{what} -> a store of volumes"
    return Verb(f"{place}.{module}:{function}", help_, ("source", "dest"), schema=f"{place}.{options}")


VERBS = {
    "demo": Verb("demonstration:demo", "the whole pipeline on built-in tissue, in minutes on a CPU"),
    "data arranged": Verb(
        "synthetic.arranged:write_arranged", "procedural slides of two classes of arranged cells", ("dest",)
    ),
    "data brats": _store("brats", "convert_brats", "BraTS as published"),
    "data check": Verb(
        "datasets.check:check_data", "counts, sizes and duplicates of a data set, and a picture", ("data",)
    ),
    "data chaoyang": Verb(
        "datasets.chaoyang:convert_chaoyang", "Chaoyang as published -> a list with classes", ("source", "dest")
    ),
    "data chestxray14": Verb(
        "datasets.chestxray14:convert_chestxray14",
        "ChestX-ray14 as published -> a list with labels",
        ("source", "dest"),
    ),
    "data chexpert": Verb(
        "datasets.chexpert:convert_chexpert", "CheXpert as published -> a list with labels", ("source", "dest")
    ),
    "data cityscapes": Verb(
        "datasets.cityscapes:convert_cityscapes", "Cityscapes as published -> images and label maps", ("source", "dest")
    ),
    "data coco": Verb("datasets.coco:convert_coco", "any COCO export -> images and COCO JSON", ("source", "dest")),
    "data crag": Verb("datasets.crag:convert_crag", "CRAG as published -> images and COCO JSON", ("source", "dest")),
    "data dicom": _store("dicom", "convert_dicom", "DICOM series", "conversion:DicomConversion"),
    "data glas": Verb("datasets.glas:convert_glas", "GlaS as published -> images and COCO JSON", ("source", "dest")),
    "data instances": Verb(
        "datasets.instances:convert_instances",
        "images with label maps -> images and COCO JSON",
        ("source", "dest"),
        renamed={"patient": "patient_regex"},
    ),
    "data lits": _store("lits", "convert_lits", "LiTS as published"),
    "data luna": _store("luna", "convert_luna", "LUNA16 as published"),
    "data mhist": Verb("datasets.mhist:convert_mhist", "MHIST as published -> a list with classes", ("source", "dest")),
    "data msd": _store("msd", "convert_msd", "a task of the Medical Segmentation Decathlon"),
    "data nct": Verb("datasets.nct:convert_nct", "NCT-CRC-HE-100K as published -> lists of files", ("source", "dest")),
    "data nodules": _store(
        "nodules", "convert_nodules", "crops around LUNA16's candidates, with labels", "nodules:NodulesConversion"
    ),
    "data nnunet": _store("nnunet", "convert_nnunet", "nnU-Net's raw layout"),
    "data pack": Verb("sources.packing:pack", "images -> one packed file that needs no decoding", ("source", "dest")),
    "data pcam": Verb(
        "datasets.pcam:convert_pcam", "PatchCamelyon as published -> a packed store and a list", ("source", "dest")
    ),
    "data qupath": Verb(
        "datasets.qupath:convert_qupath", "QuPath's GeoJSON -> images and COCO JSON", ("source", "dest")
    ),
    "data regions": Verb(
        "datasets.regions:write_regions", "features of tiles -> grids of regions, for HIPT", ("source", "dest")
    ),
    "data tissue": Verb("synthetic.tissue:write_tissue", "procedural tissue with exact gland masks", ("dest",)),
    "data volumes": _store(
        "folder", "convert_folder", "NIfTI, MetaImage or nnssl's list", "conversion:FolderConversion"
    ),
    "slides": Verb("sources.slides.table:list_slides", "list whole slides: levels, µm per pixel, problems"),
    "tile": Verb("sources.tiles.tile:tile", "find the tissue of whole slides, and cover it with tiles of a size in µm"),
    "cells": Verb("annotations.cells.find:cells", "the cells of slides and images, found or imported"),
    "pretrain": Verb(
        "api:pretrain", "learn features from unlabelled images", schema="training.config:PretrainConfig", recipes=""
    ),
    "export": Verb(
        "transfer.export:export",
        "a run or a file -> weights for timm, torchvision or detectron2; a detector or classifier -> ONNX",
        ("run",),
        renamed={"to": "out"},
    ),
    "embed": Verb("transfer.embed.embed:embed", "a vector of features for each image, by a frozen network"),
    "probe": Verb("transfer.probe.probe:probe", "score frozen features: of pixels, or of images with labels"),
    "mil": Verb(
        "transfer.mil.mil:mil",
        "answers for slides and patients from the features of their tiles: DSMIL, ABMIL, CLAM, TransMIL, ...",
        schema="transfer.mil.config:MilConfig",
    ),
    "classify": Verb(
        "api:classify",
        "train classifiers of images: fine-tuned or linear, of classes or several labels, in folds by patient",
        schema="transfer.classify.config:ClassifyConfig",
        recipes="classify",
    ),
    "segment": Verb(
        "api:segment",
        "train segmenters of images and volumes: a class for each pixel, in folds by patient",
        schema="transfer.segment.config:SegmentConfig",
        recipes="segment",
    ),
    "detect": Verb(
        "api:detect",
        "fine-tune and evaluate a detector of outlined objects",
        schema="transfer.detection.config:DetectConfig",
        recipes="detect",
    ),
    "predict": Verb("transfer.predict:predict", "apply a trained network to new images and slides", ("run",)),
    "score": Verb(
        "transfer.score:score",
        "compare predictions with the truth: objects (F1, Dice, AJI, PQ, AP), regions, labels of images (AUC)",
    ),
    "sam": Verb("transfer.sam.sam:sam", "evaluate Segment Anything without training on the same objects"),
    "show attention": Verb("analysis.show_attention:show_attention", "how sparse the attention of transformers is"),
    "show cells": Verb("analysis.show_cells:show_cells", "draw cells, or the share of tokens that contain one"),
    "show curves": Verb("analysis.curves:show_curves", "draw the losses, learning rates and scores of runs"),
    "show views": Verb("analysis.show:show_views", "draw the views that a recipe makes"),
    "show concepts": Verb(
        "analysis.show:show_concepts", "draw the concepts that a backbone finds", renamed={"concept_files": "regions"}
    ),
    "show detections": Verb(
        "analysis.show_detections:show_detections",
        "draw the true objects and those that detectors find",
    ),
    "show reconstruction": Verb("analysis.show:show_reconstruction", "draw a run's predictions of hidden patches"),
    "show similarity": Verb(
        "analysis.show_similarity:show_similarity", "distributions of the similarity of regions within images"
    ),
    "show tokens": Verb("analysis.show_tokens:show_tokens", "how far tokens with cells are from the background"),
    "report": Verb(
        "report.verb:write_report", "run folders as one HTML page: pictures, curves, scores, comparisons", ("runs",)
    ),
    "benchmark": Verb(
        "benchmark.verb:benchmark_table",
        "run the methods, tasks and seeds of a paper's table",
        renamed={"cells": "runs"},
    ),
}

# Verbs whose work the processes of a job share; of others each process is a command of its own.
SHARED = ("cells", "embed", "predict", "pretrain", "tile")
# Verbs whose scores are printed, and not where their files are.
SCORED = ("classify", "detect", "mil", "probe", "score", "segment")
# A command that continues from the path that a verb has written, which is inserted for {0}.
_DETECT = "densepath detect --data {0} --out {0}_detector"
_SMALL = f"{_DETECT} --config glas_small"  # the default takes days without a GPU
NEXT = {
    "data arranged": "densepath tile --data {0} --out {0}_tiles --mpp 0.5 --size 96",
    "data crag": f"{_DETECT} --config crag",
    "data glas": _SMALL,
    "data nct": "densepath pretrain --config concl --data {0}/train.csv --out {0}_run",
    "data chaoyang": "densepath classify --config chaoyang --data {0} --labels {0} --weights RUN --out chaoyang_run",
    "data chestxray14": "densepath classify --config chestxray14 --data {0} --labels {0} --target label "
    "--separator '|' --weights RUN --out chestxray14_run",
    "data chexpert": "densepath classify --config chestxray14 --data {0} --labels {0} --targets Edema Consolidation "
    "--weights RUN --out chexpert_run",
    "data cityscapes": "densepath segment --config cityscapes_fcn --data {0} --weights RUN --out cityscapes_run",
    "data mhist": "densepath classify --config mhist --data {0} --labels {0} --weights RUN --out mhist_run",
    "data nodules": "densepath classify --data {0} --labels {0}/labels.csv --weights RUN --out {0}_run",
    "data pcam": "densepath classify --data {0}/images.safetensors --labels {0}/labels.csv --out {0}_run",
    "embed": "densepath probe --features {0} --labels LABELS",
    "data pack": "densepath pretrain --config concl_small --data {0} --out {0}_run",
    "data regions": "densepath pretrain --config hipt_region_small --data {0} --out {0}_run",
    **dict.fromkeys(
        (f"data {name}" for name in ("brats", "dicom", "lits", "luna", "msd", "nnunet", "volumes")),
        "densepath data check {0} --out {0}.png",
    ),
    **dict.fromkeys(("data coco", "data instances", "data qupath", "data tissue"), _SMALL),
}
