"""densepath learns visual features from unlabelled tissue and transfers them to dense tasks.

The verbs of the command line are functions of this package: ``densepath.pretrain(...)``, ``densepath.export(...)`` and
so on. Each is imported when it is first used, so that ``import densepath`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from densepath.version import __version__

if TYPE_CHECKING:
    from densepath.analysis.curves import show_curves as show_curves
    from densepath.analysis.show import show_concepts as show_concepts
    from densepath.analysis.show import show_reconstruction as show_reconstruction
    from densepath.analysis.show import show_views as show_views
    from densepath.analysis.show_attention import show_attention as show_attention
    from densepath.analysis.show_cells import show_cells as show_cells
    from densepath.analysis.show_detections import show_detections as show_detections
    from densepath.analysis.show_similarity import show_similarity as show_similarity
    from densepath.analysis.show_tokens import show_tokens as show_tokens
    from densepath.annotations.cells.find import cells as cells
    from densepath.api import classify as classify
    from densepath.api import detect as detect
    from densepath.api import pretrain as pretrain
    from densepath.api import segment as segment
    from densepath.benchmark.verb import benchmark_table as benchmark_table
    from densepath.core.errors import UserError as UserError
    from densepath.core.result import Result as Result
    from densepath.datasets.chaoyang import convert_chaoyang as convert_chaoyang
    from densepath.datasets.check import check_data as check_data
    from densepath.datasets.chestxray14 import convert_chestxray14 as convert_chestxray14
    from densepath.datasets.chexpert import convert_chexpert as convert_chexpert
    from densepath.datasets.cityscapes import convert_cityscapes as convert_cityscapes
    from densepath.datasets.coco import convert_coco as convert_coco
    from densepath.datasets.crag import convert_crag as convert_crag
    from densepath.datasets.glas import convert_glas as convert_glas
    from densepath.datasets.instances import convert_instances as convert_instances
    from densepath.datasets.mhist import convert_mhist as convert_mhist
    from densepath.datasets.nct import convert_nct as convert_nct
    from densepath.datasets.pcam import convert_pcam as convert_pcam
    from densepath.datasets.qupath import convert_qupath as convert_qupath
    from densepath.datasets.regions import write_regions as write_regions
    from densepath.datasets.volumes.brats import convert_brats as convert_brats
    from densepath.datasets.volumes.conversion import Conversion as Conversion
    from densepath.datasets.volumes.conversion import DicomConversion as DicomConversion
    from densepath.datasets.volumes.conversion import FolderConversion as FolderConversion
    from densepath.datasets.volumes.dicom import convert_dicom as convert_dicom
    from densepath.datasets.volumes.folder import convert_folder as convert_folder
    from densepath.datasets.volumes.lits import convert_lits as convert_lits
    from densepath.datasets.volumes.luna import convert_luna as convert_luna
    from densepath.datasets.volumes.msd import convert_msd as convert_msd
    from densepath.datasets.volumes.nnunet import convert_nnunet as convert_nnunet
    from densepath.datasets.volumes.nodules import convert_nodules as convert_nodules
    from densepath.demonstration import demo as demo
    from densepath.report.verb import write_report as write_report
    from densepath.sources.packing import pack as pack
    from densepath.sources.slides.open import open_slide as open_slide
    from densepath.sources.slides.table import list_slides as list_slides
    from densepath.sources.tiles.tile import tile as tile
    from densepath.synthetic.arranged import write_arranged as write_arranged
    from densepath.synthetic.tissue import write_tissue as write_tissue
    from densepath.training.config import PretrainConfig as PretrainConfig
    from densepath.transfer.classify.config import ClassifyConfig as ClassifyConfig
    from densepath.transfer.classify.trained import load_classifier as load_classifier
    from densepath.transfer.detection.config import DetectConfig as DetectConfig
    from densepath.transfer.detection.predictor import load_detector as load_detector
    from densepath.transfer.embed.embed import embed as embed
    from densepath.transfer.embed.feature_file import read_features as read_features
    from densepath.transfer.embed.slide_features import read_slide_features as read_slide_features
    from densepath.transfer.export import export as export
    from densepath.transfer.mil.mil import mil as mil
    from densepath.transfer.predict import predict as predict
    from densepath.transfer.probe.probe import probe as probe
    from densepath.transfer.sam.sam import sam as sam
    from densepath.transfer.score import score as score
    from densepath.transfer.segment.config import SegmentConfig as SegmentConfig
    from densepath.transfer.segment.trained import load_segmenter as load_segmenter
    from densepath.transfer.slides.heat_map import write_heat_map as write_heat_map

_HOME = {
    "ClassifyConfig": "densepath.transfer.classify.config",
    "Conversion": "densepath.datasets.volumes.conversion",
    "DicomConversion": "densepath.datasets.volumes.conversion",
    "FolderConversion": "densepath.datasets.volumes.conversion",
    "DetectConfig": "densepath.transfer.detection.config",
    "PretrainConfig": "densepath.training.config",
    "Result": "densepath.core.result",
    "SegmentConfig": "densepath.transfer.segment.config",
    "UserError": "densepath.core.errors",
    "benchmark_table": "densepath.benchmark.verb",
    "cells": "densepath.annotations.cells.find",
    "check_data": "densepath.datasets.check",
    "convert_chestxray14": "densepath.datasets.chestxray14",
    "convert_chexpert": "densepath.datasets.chexpert",
    "convert_cityscapes": "densepath.datasets.cityscapes",
    "convert_coco": "densepath.datasets.coco",
    "convert_crag": "densepath.datasets.crag",
    "convert_glas": "densepath.datasets.glas",
    "convert_instances": "densepath.datasets.instances",
    "convert_nct": "densepath.datasets.nct",
    "convert_chaoyang": "densepath.datasets.chaoyang",
    "convert_mhist": "densepath.datasets.mhist",
    "convert_pcam": "densepath.datasets.pcam",
    "convert_qupath": "densepath.datasets.qupath",
    "convert_brats": "densepath.datasets.volumes.brats",
    "convert_dicom": "densepath.datasets.volumes.dicom",
    "convert_folder": "densepath.datasets.volumes.folder",
    "convert_lits": "densepath.datasets.volumes.lits",
    "convert_luna": "densepath.datasets.volumes.luna",
    "convert_nodules": "densepath.datasets.volumes.nodules",
    "convert_msd": "densepath.datasets.volumes.msd",
    "convert_nnunet": "densepath.datasets.volumes.nnunet",
    "demo": "densepath.demonstration",
    "classify": "densepath.api",
    "detect": "densepath.api",
    "embed": "densepath.transfer.embed.embed",
    "export": "densepath.transfer.export",
    "list_slides": "densepath.sources.slides.table",
    "load_classifier": "densepath.transfer.classify.trained",
    "load_detector": "densepath.transfer.detection.predictor",
    "load_segmenter": "densepath.transfer.segment.trained",
    "mil": "densepath.transfer.mil.mil",
    "open_slide": "densepath.sources.slides.open",
    "pack": "densepath.sources.packing",
    "predict": "densepath.transfer.predict",
    "pretrain": "densepath.api",
    "read_features": "densepath.transfer.embed.feature_file",
    "read_slide_features": "densepath.transfer.embed.slide_features",
    "probe": "densepath.transfer.probe.probe",
    "sam": "densepath.transfer.sam.sam",
    "score": "densepath.transfer.score",
    "segment": "densepath.api",
    "show_cells": "densepath.analysis.show_cells",
    "show_concepts": "densepath.analysis.show",
    "show_curves": "densepath.analysis.curves",
    "show_detections": "densepath.analysis.show_detections",
    "show_reconstruction": "densepath.analysis.show",
    "show_attention": "densepath.analysis.show_attention",
    "show_similarity": "densepath.analysis.show_similarity",
    "show_tokens": "densepath.analysis.show_tokens",
    "show_views": "densepath.analysis.show",
    "tile": "densepath.sources.tiles.tile",
    "write_arranged": "densepath.synthetic.arranged",
    "write_heat_map": "densepath.transfer.slides.heat_map",
    "write_report": "densepath.report.verb",
    "write_regions": "densepath.datasets.regions",
    "write_tissue": "densepath.synthetic.tissue",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Stored, so that a function with the name of its module is not hidden by the module once that is imported.
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
