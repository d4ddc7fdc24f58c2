"""The command line: verbs, each of which calls a public function whose signature is its options."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from densepath.command import Command
from densepath.core.errors import UserError
from densepath.core.signals import unwinding_on_signals
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import flush_streams, open_streams, write_line
from densepath.options import close_match
from densepath.version import __version__

EXIT_BUG, EXIT_USER, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


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
        "a run or a file -> weights for timm, torchvision or detectron2; a detector -> ONNX",
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
    "score": Verb("transfer.score:score", "compare predicted objects with true ones: F1, Dice, AJI, PQ, AP"),
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

# Verbs whose scores are printed, and not where their files are.
_SCORED = ("classify", "detect", "mil", "probe", "score", "segment")
# A command that continues from the path that a verb has written, which is inserted for {0}.
_DETECT = "densepath detect --data {0} --out {0}_detector"
_NEXT = {
    "data arranged": "densepath tile --data {0} --out {0}_tiles --mpp 0.5 --size 96",
    "data crag": f"{_DETECT} --config crag",
    "data glas": f"{_DETECT} --config glas_small",  # glas takes days without a GPU
    "data nct": "densepath pretrain --config concl --data {0}/train.csv --out {0}_run",
    "data chaoyang": "densepath classify --config chaoyang --data {0} --labels {0} --weights RUN --out chaoyang_run",
    "data chestxray14": "densepath classify --config chestxray14 --data {0} --labels {0} --target label "
    "--separator '|' --weights RUN --out chestxray14_run",
    "data chexpert": "densepath classify --config chestxray14 --data {0} --labels {0} --targets Edema Consolidation "
    "--weights RUN --out chexpert_run",
    "data mhist": "densepath classify --config mhist --data {0} --labels {0} --weights RUN --out mhist_run",
    "data pcam": "densepath classify --data {0}/images.safetensors --labels {0}/labels.csv --out {0}_run",
    "data nodules": "densepath classify --data {0} --labels {0}/labels.csv --weights RUN --out {0}_run",
    "embed": "densepath probe --features {0} --labels LABELS",
    "data pack": "densepath pretrain --config concl_small --data {0} --out {0}_run",
    "data regions": "densepath pretrain --config hipt_region_small --data {0} --out {0}_run",
    **dict.fromkeys(
        (f"data {name}" for name in ("brats", "dicom", "lits", "luna", "msd", "nnunet", "volumes")),
        "densepath data check {0} --out {0}.png",
    ),
    **dict.fromkeys(("data coco", "data instances", "data qupath", "data tissue"), _DETECT),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 2 for errors that the user can fix; 130 when interrupted; 1 for a bug.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _wait_shortly()
    open_streams()
    try:
        with unwinding_on_signals():
            return _checked(argv)
    finally:
        flush_streams()


def _wait_shortly() -> None:
    """Let the threads of torch, which is not loaded yet, sleep at a barrier after about a millisecond.

    By default they keep their cores busy for 20 or 200 ms (libgomp, Intel's OpenMP), even if a thread that they wait
    for cannot run because other programs have its core.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        os.environ.setdefault("KMP_BLOCKTIME", "1")


def _checked(argv: list[str]) -> int:
    """Run the command line; every error becomes a line and an exit code."""
    try:
        _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except UserError as error:
        return _fail(str(error))
    except SystemExit:
        raise
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except RecursionError:
        return _fail("folders, or values in a file, are nested too deeply; flatten them")
    except BrokenPipeError:
        # Otherwise Python reports on exit that it cannot flush to a closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return _fail(f"{error.filename}: {reason}" if error.filename else reason)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            return _fail("the device has not enough memory; lower --batch_size or --view_size")
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return _fail("this machine has not enough memory; use smaller values (--batch_size, queues, sizes)")
        write_line("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
        command = shlex.join(["densepath", *argv])
        return _fail(
            f"this is a bug in densepath {__version__}; please report the lines above and: {command}", EXIT_BUG
        )


def _fail(message: str, code: int = EXIT_USER) -> int:
    write_line(f"densepath: error: {' '.join(message.split())}", sys.stderr)
    return code


def _run(argv: list[str]) -> None:
    if argv == ["--version"]:
        print(f"densepath {__version__}")
        return
    if sys.platform == "win32":
        raise UserError("densepath needs the locks and signals of Linux or macOS; on Windows, install it in WSL 2")
    if argv and argv[0] == "--print_completion":
        from densepath.completion import completion

        print(completion({name: (verb.help, verb.command(name)) for name, verb in VERBS.items()}, argv[1:]))
        return
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    name, words = _find_verb(argv)
    if name is None:
        print(_overview(argv[0]))
        return
    command = VERBS[name].command(name)
    if "-h" in words or "--help" in words:
        print(command.help(words))
    elif command.recipes is not None and "--print_config" in words:
        print(command.configuration(words), end="")
    else:
        watch = Stopwatch()
        _report(name, command.run(words), watch)


def _find_verb(argv: list[str]) -> tuple[str | None, list[str]]:
    """The verb at the beginning of the words, and the other words; None for a group of verbs such as ``data``."""
    for length in (1, 2):
        name = " ".join(argv[:length])
        if name in VERBS:
            return name, argv[length:]
    group = [verb for verb in VERBS if verb.startswith(f"{argv[0]} ")]
    if group and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        return None, []
    known = group or list(dict.fromkeys(verb.split()[0] for verb in VERBS))
    wrong = " ".join(argv[: 2 if group else 1])
    # The names of a group are compared without what all begin with.
    hint = close_match(wrong.split()[-1], [verb.split()[-1] for verb in known])
    hint = hint.replace("did you mean ", f"did you mean {argv[0]} ") if group else hint
    raise UserError(f"unknown verb {wrong!r}; {hint or 'there are: ' + ', '.join(known)}")


def _overview(group: str = "") -> str:
    """The list of all verbs, or of a group, with a line for each."""
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(group)}
    width = max(map(len, verbs)) + 2
    return "\n".join(
        [
            f"usage: densepath {group or 'VERB'} ...",
            "",
            "Learn visual features from unlabelled tissue, and transfer them to detection and segmentation.",
            "",
            *(f"  {name:{width}}{verb.help}" for name, verb in verbs.items()),
            "",
            "densepath VERB --help explains a verb and its options (--help all: all of them).",
            "densepath --version prints the version, densepath --print_completion bash|zsh|tcsh completion.",
        ]
    )


def _report(verb: str, result: Any, watch: Stopwatch) -> None:
    """Print the result of a verb: scores as a table, a path as it is. Only the first of several processes prints.

    A closed output is ignored.
    """
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        return
    if isinstance(result, dict) or (isinstance(result, Mapping) and verb in _SCORED):
        width = max([24, *(len(name) + 2 for name in result)])
        for name, value in result.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            write_line(f"{name:{width}}{shown}", sys.stdout)
    elif isinstance(result, os.PathLike):
        write_line(os.fspath(result), sys.stdout)
        if verb in _NEXT and not (verb == "embed" and os.path.isdir(result)):  # a folder has features of slides
            from densepath.core.closing import say_end

            say_end(watch, "", {}, (_NEXT[verb].format(shlex.quote(os.fspath(result))),))
