"""densepath learns visual features from unlabelled tissue and moves them to dense tasks.

The verbs of the command line are functions of this package: ``densepath.pretrain(...)``, ``densepath.export(...)`` and
so on. Each is imported when it is first asked for, so that ``import densepath`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densepath.analysis.show import show_concepts as show_concepts
    from densepath.analysis.show import show_reconstruction as show_reconstruction
    from densepath.analysis.show import show_views as show_views
    from densepath.analysis.show_similarity import show_similarity as show_similarity
    from densepath.benchmark.verb import benchmark_table as benchmark_table
    from densepath.demonstration import demo as demo
    from densepath.images.crag import convert_crag as convert_crag
    from densepath.images.glas import convert_glas as convert_glas
    from densepath.images.instances import convert_instances as convert_instances
    from densepath.images.sources import pack as pack
    from densepath.images.tissue import write_tissue as write_tissue
    from densepath.training.export import export as export
    from densepath.training.pretrain import pretrain as pretrain
    from densepath.transfer.detection import detect as detect
    from densepath.transfer.probe import probe as probe
    from densepath.transfer.sam import sam as sam

__version__ = "0.1.0"

_HOME = {
    "benchmark_table": "densepath.benchmark.verb",
    "convert_crag": "densepath.images.crag",
    "convert_glas": "densepath.images.glas",
    "convert_instances": "densepath.images.instances",
    "demo": "densepath.demonstration",
    "detect": "densepath.transfer.detection",
    "export": "densepath.training.export",
    "pack": "densepath.images.sources",
    "pretrain": "densepath.training.pretrain",
    "probe": "densepath.transfer.probe",
    "sam": "densepath.transfer.sam",
    "show_concepts": "densepath.analysis.show",
    "show_reconstruction": "densepath.analysis.show",
    "show_similarity": "densepath.analysis.show_similarity",
    "show_views": "densepath.analysis.show",
    "write_tissue": "densepath.images.tissue",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that a function which bears its module's name is not hidden by the module once that is imported.
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
