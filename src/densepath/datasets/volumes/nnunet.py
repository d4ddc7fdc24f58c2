"""``densepath data nnunet``: a data set in nnU-Net's raw layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from densepath.core.closing import command
from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.datasets.volumes.conversion import Case, Contents, Conversion, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.dataset_json import DATASET_JSON, channels_of, labels_of, reading
from densepath.datasets.volumes.folder import CHANNEL, volumes_in
from densepath.sources.corrupt import CorruptImage
from densepath.sources.volumes.read import count_channels, read_channels, read_volume
from densepath.sources.volumes.volume import Volume

_SPLITS = {"train": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def convert_nnunet(how: Conversion) -> Path:
    """Convert a data set in nnU-Net's raw layout to a store.

    ``imagesTr/CASE_0000.nii.gz`` (one file for each channel), ``labelsTr/CASE.nii.gz``, ``dataset.json``, and perhaps
    ``imagesTs`` and ``labelsTs``. A case that lacks a channel, or has one without a name there, is named and left out.

    Returns:
        The folder of the store.

    Raises:
        UserError: there is no case, or none can be read.
    """
    source = source_folder(how.source)
    with reading(source / DATASET_JSON, "nnU-Net's dataset.json") as facts:
        of_msd = "training" in facts and "channel_names" not in facts
        names, labels, counted_cases = channels_of(facts), labels_of(facts), facts.get("numTraining")
    cases = []
    for split, folders in _SPLITS.items():
        if of_msd and (images := source / folders[0]).is_dir() and not any(map(CHANNEL.fullmatch, volumes_in(images))):
            again = command("data", "msd", source, how.dest)
            raise UserError(f"{source} has the layout of MSD, without numbers of channels; convert it with {again}")
        cases += _cases(source, split, folders, names, how)
    trained = sum(case.split == "train" for case in cases)
    if counted_cases not in (None, trained):
        say(f"densepath: warning: {trained} training cases, and dataset.json counts {counted_cases}")
    modality = "CT" if names and all(name.upper() == "CT" for name in names) else "other" if names else ""
    return convert(cases, Contents("nnunet", modality, labels, names), how)


def _cases(source: Path, split: str, folders: tuple[str, str], names: Sequence[str], how: Conversion) -> list[Case]:
    images, labels = (source / folder for folder in folders)
    if not images.is_dir():
        return []
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    for name, path in volumes_in(images).items():
        match = CHANNEL.fullmatch(name)
        if match is None:
            raise UserError(f"{path} does not end in the number of a channel, as in nnU-Net; rename it to {name}_0000")
        files[match[1]][int(match[2])] = path
    of_labels = volumes_in(labels) if labels.is_dir() else {}
    if split == "train" and (lacking := sorted(files.keys() - of_labels.keys())):
        say(
            f"densepath: warning: {counted(len(lacking), 'training case has', 'training cases have')} no "
            f"labels: {first_few(lacking)}"
        )
    if unused := sorted(of_labels.keys() - files.keys()):
        say(
            f"densepath: warning: of {labels} {counted(len(unused), 'label file has', 'label files have')} no "
            f"volume: {first_few(unused)}"
        )
    return [
        Case(
            name,
            partial(_read, name, parts, names, how),
            partial(read_volume, of_labels[name], how.target) if name in of_labels else None,
            split=split,
            file=str(next(iter(parts.values()))),
            inputs=(*(parts[k] for k in sorted(parts)), *([of_labels[name]] if name in of_labels else [])),
            count=partial(_count, parts, names),
        )
        for name, parts in files.items()
    ]


def _faults(parts: dict[int, Path], names: Sequence[str]) -> list[str]:
    """What is wrong with the channels of a case, if they have these names; without names it needs the first one."""
    lacking = [f"{k:04d}" for k in range(max(len(names), 1)) if k not in parts]
    unnamed = [f"{k:04d}" for k in sorted(parts) if k >= len(names) > 0]
    return [f"it lacks the channels {first_few(lacking)}"] * bool(lacking) + [
        f"{DATASET_JSON} does not name its channels {first_few(unnamed)}"
    ] * bool(unnamed)


def _count(parts: dict[int, Path], names: Sequence[str]) -> int | None:
    """The channels of a case by its headers; None if they are not those of the data set."""
    counts = [count_channels(path) for path in parts.values()]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) and not _faults(parts, names) else None


def _read(name: str, parts: dict[int, Path], names: Sequence[str], how: Conversion) -> Volume:
    if faults := _faults(parts, names):
        raise CorruptImage(name, " and ".join(faults))
    return read_channels([parts[k] for k in sorted(parts)], how.target)
