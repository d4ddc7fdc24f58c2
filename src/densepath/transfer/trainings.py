"""The trainings of a study, one for each fold and seed, as classifiers and segmenters have them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.core.digests import digest_of, identical_files
from densepath.core.errors import UserError, counted, first_few
from densepath.core.files import atomic_write
from densepath.core.json_files import load_json
from densepath.core.streams import say
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.nets.weights.pretrained import backbone_of_weights
from densepath.runs.sessions import record_session
from densepath.sources.image_files import ImageFiles
from densepath.sources.other_bits import seen_as, warn_of_mixed_bits
from densepath.sources.pixel_source import PixelSource, PixelSpec
from densepath.training.hardware import Hardware, Precision, choose_hardware, divide_batch, keep_freed_memory
from densepath.transfer.classify.cohort import Pool
from densepath.transfer.classify.config import ClassifyConfig
from densepath.transfer.classify.results import METRICS
from densepath.transfer.classify.splits import PARTS, Split, Study, divide
from densepath.transfer.segment.config import SegmentConfig

_BACKBONE_3D = "resnet18_3d"
SPLITS = "splits.json"
_STUDY = "study.txt"  # the digest of what is learned from
MADE = (SPLITS, _STUDY, "seed_*", "fold_*")  # in the folder of a run that is not complete


@dataclass(frozen=True, eq=False)
class Trainings:
    """What is trained, one after the other.

    Args:
        each: the seed of each training, its parts, and its folder below that of the run, "" for the only one.
        splits: the parts of all trainings, by seed.
    """

    each: list[tuple[int, Split, str]]
    splits: dict[int, list[Split]]

    @classmethod
    def of(cls, config: ClassifyConfig | SegmentConfig, study: Study, hardware: Hardware) -> Trainings:
        """Divide a study.

        Raises:
            UserError: it cannot be divided, several trainings are to run on several devices, or a batch or the training
                images cannot be divided among these.
        """
        divide_batch(config.batch_size, hardware.world_size)
        seeds = [config.seed + number for number in range(config.seeds)]
        splits = {seed: divide(study, config.folds, config.validation, config.fraction, seed) for seed in seeds}
        each = [
            (seed, split, training_name(seed, number, len(seeds), len(splits[seed])))
            for seed in seeds
            for number, split in enumerate(splits[seed])
        ]
        if hardware.world_size > 1 and len(each) > 1:
            raise UserError(
                f"{len(each)} trainings (folds and seeds) run one after the other on one device; leave --devices out, "
                "or give --seeds 1 --folds 0"
            )
        if (fewest := min(len(split.train) for _, split, _ in each)) < hardware.world_size:
            raise UserError(
                f"{counted(fewest, 'training image')} cannot be divided among {hardware.world_size} devices; use fewer"
            )
        return cls(each, splits)

    @property
    def names(self) -> list[str]:
        """The folders of the trainings."""
        return [name for *_, name in self.each]

    def record_session(self, out: Path, study: Study, hardware: Hardware) -> None:
        """Record where several trainings of a run are computed, unless they are done; a single one does so itself."""
        if self.names != [""] and not (out / METRICS).is_file():
            record_session(out, None, hardware.device, hardware.world_size, {"images": len(study.train)})


def hardware_of_run(old: Mapping[str, Any] | None, devices: int | str, precision: Precision) -> Hardware:
    """Where a run computes: as the options say, in the precision of the record ``old`` if it is resumed."""
    if old is not None and precision == "auto":
        precision = old["precision"]
    hardware = choose_hardware(devices, precision)
    keep_freed_memory(hardware)
    return hardware


def warn_of_unknown_patients(study: Study) -> None:
    """Say that images of a patient may be on both sides of a split."""
    if not (study.train.by_patient and study.test.by_patient):
        say(
            "densepath: warning: the patients are unknown, so images of one may be in training and test, which makes "
            "scores too high; name them with --patient or --patient_regex"
        )


def sizes_of(split: Split) -> str:
    """How many images each part has, in words."""
    return ", ".join(f"{len(getattr(split, part))} {part}" for part in PARTS) + " images"


def warn_of_copies(study: Study) -> None:
    """Name copies of one image file that count as images of several patients, or have several labels."""
    pools = [study.train] if study.test is study.train else [study.train, study.test]
    images = [(pool, k) for pool in pools if isinstance(pool.images, ImageFiles) for k in range(len(pool))]
    groups = identical_files([pool.images.names(k) for pool, k in images])
    known = [[images[place] for place in group] for group in groups]
    other = [own for own in known if len({(pool.owners[k], pool.targets.values[k].tobytes()) for pool, k in own}) > 1]
    if other:
        shown = first_few([" = ".join(pool.names[k] for pool, k in own) for own in other])
        say(
            f"densepath: warning: {counted(len(other), 'group')} of identical files with other names, which count as "
            f"images of several patients or have several labels: {shown}; keep one of each (--exclude)"
        )


def pixels_of_run(weights: str | Path, images: PixelSource, recorded: Mapping[str, Any] | None) -> PixelSpec:
    """The specification of the pixels: of the resumed run, or else of the weights, with the window of the images."""
    if recorded is not None:
        return PixelSpec.from_record(recorded)
    other = images.spec.ndim != 2 or images.spec.channels not in (1, 3)
    spec = pixels_of_weights(weights, images.spec if other else None)
    if weights == "random" and not other:
        spec = images.spec
    if not isinstance(images, ImageFiles) and images.spec.channels != spec.channels:  # only files are converted
        raise UserError(
            f"the images have {counted(images.spec.channels, 'channel')} and the weights take {spec.channels}; give "
            "image files instead of a packed store, or other weights"
        )
    spec = seen_as(spec, images)
    warn_of_mixed_bits(images, spec)
    return spec


def backbone_of_run(config: ClassifyConfig | SegmentConfig, ndim: int) -> str:
    """The name of the backbone: the one that is asked for, or that of the weights; for random ones that of the images.

    Raises:
        UserError: the weights do not show it.
    """
    if config.backbone is None and str(config.weights) == "random" and ndim == 3:
        return _BACKBONE_3D
    return config.backbone or backbone_of_weights(config.weights)


def sides_of(view_size: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """The sides of views, one for each axis of the images.

    Raises:
        UserError: another number of sides is given.
    """
    size = (view_size,) if isinstance(view_size, int) else tuple(view_size)
    size = size * ndim if len(size) == 1 else size
    if len(size) != ndim:
        raise UserError(
            f"view_size has {counted(len(size), 'side')}, and the images have {ndim} dimensions; give as many"
        )
    return size


def check_same(out: Path, study: Study, digests: Sequence[str] = (), reason: str = "") -> None:
    """Refuse to continue a run with other images or labels, or files of labels with other digests.

    Args:
        out: the folder of the run.
        study: the images with their labels.
        digests: of files of labels.
        reason: what else may differ from the run, for the message.
    """
    facts: list[str | bytes] = [*digests]
    for pool in (study.train, study.test):
        facts += [*pool.names, *pool.owners, *pool.splits, *pool.targets.names, pool.targets.values.tobytes()]
    path, digest = out / _STUDY, digest_of(facts)
    if not path.is_file():
        with atomic_write(path) as part:
            part.write_text(f"{digest}\n")
    elif path.read_text(errors="replace").strip() != digest:
        raise UserError(f"the images or the labels of the run in {out} have changed{reason}; name another folder")


def keep_splits(out: Path, study: Study, splits: Mapping[int, Sequence[Split]]) -> None:
    """Write the names of the images in each part of each training; refuse to continue a run with other parts.

    Raises:
        UserError: the run in this folder has divided its images in another way, or its record of that is damaged.
    """

    def names(pool: Pool, positions: Any) -> list[str]:
        return [pool.names[p] for p in positions]

    record = {
        f"seed_{seed}": [
            {
                "train": names(study.train, split.train),
                "validation": names(study.train, split.validation),
                "test": names(study.test, split.test),
            }
            for split in own
        ]
        for seed, own in splits.items()
    }
    path = out / SPLITS
    if not path.is_file():
        with atomic_write(path) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
    elif load_json(path, "a whole copy, or remove it") != record:
        raise UserError(
            f"the images would be divided in another way than in {path} (another --train_images, or another version "
            "of densepath or scikit-learn); use those of then, or name another folder"
        )


def training_name(seed: int, fold: int, seeds: int, folds: int) -> str:
    """The folder of a training below that of the run; "" for the only one."""
    parts = [f"seed_{seed}"] * (seeds > 1) + [f"fold_{fold}"] * (folds > 1)
    return "/".join(parts)
