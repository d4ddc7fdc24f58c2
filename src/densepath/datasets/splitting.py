"""Training, validation and test images: as the source has them, as a table lists them, or by patient at random."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from densepath.annotations.patients import check_spelling, patient_in_name
from densepath.core.columns import FILE_COLUMNS, SPLIT, SPLIT_OF, SPLITS
from densepath.core.csv_files import open_table
from densepath.core.errors import UserError, refuse
from densepath.core.output_names import names_below
from densepath.core.random import ordered_by_seed
from densepath.core.streams import say
from densepath.datasets.find_files import FileIndex, in_other_folders
from densepath.datasets.samples import Sample
from densepath.datasets.shared_patients import report_patients, report_unknown

Splits = dict[str, list[Sample]]


@dataclass(frozen=True)
class Splitting:
    """How images are split.

    Args:
        test_share, val_share: shares of the patients.
        patient_regex: finds the patient in an image's name.
        seed: another one gives another split.
        table: a CSV file with the columns file and split.
    """

    test_share: float | None = None
    val_share: float | None = None
    patient_regex: str | None = None
    seed: int = 0
    table: str | Path | None = None


def split_samples(
    samples: Sequence[Sample], how: Splitting, source: str | Path
) -> tuple[Splits, dict[str, int] | None]:
    """Split images. All images of a patient are in one split, unless the source or the table has them in several.

    The split of a patient depends on the seed and the patients, not on the order of the images.

    Args:
        samples: the images, perhaps with splits that the source gives them, which are kept.
        how: the options.
        source: where they come from, for messages.

    Returns:
        The images of each split, and its number of patients if these are known.

    Raises:
        UserError: an option does not fit, a split would be empty, or a patient has two names.
    """
    for name, share in (("--test_share", how.test_share), ("--val_share", how.val_share)):
        if share is not None and not 0 < share < 1:
            raise UserError(f"{name} is {share}; give a number between 0 and 1")
    if (how.test_share or 0) + (how.val_share or 0) >= 1:
        raise UserError("--test_share and --val_share leave no training images; give less than 1 together")
    owners = owners_of(samples, how.patient_regex)
    if how.patient_regex is None and (how.test_share or how.val_share) and not any(s.patient for s in samples):
        say(
            "densepath: warning: the patients are unknown, so images of one may be in training and test, which makes "
            "scores too high; name them with --patient_regex or a manifest.csv"
        )
    if how.patient_regex is not None:
        samples = [replace(sample, patient=owner) for sample, owner in zip(samples, owners, strict=True)]
    known = [sample.patient for sample in samples]
    check_spelling(filter(None, known))
    if how.table is not None:
        if how.test_share is not None or how.val_share is not None:
            raise UserError("--splits names the split of each image; leave out --test_share and --val_share")
        given: Sequence[str | None] = _listed(samples, Path(how.table))
    else:
        given = _given(samples, how, source)
    chosen = _drawn(given, owners, how)
    splits = {split: [s for s, one in zip(samples, chosen, strict=True) if one == split] for split in SPLITS}
    if not splits["val"] and how.val_share is None:
        del splits["val"]
    for split, found in splits.items():
        if not found:
            raise UserError(f"{source} has no {split} image; add at least one")
    report_patients(known, chosen)
    if not all(known):
        return splits, None
    return splits, {split: len({sample.patient for sample in found}) for split, found in splits.items()}


def _given(samples: Sequence[Sample], how: Splitting, source: str | Path) -> list[str | None]:
    """The split of each image in the source; None for those that are to be drawn. Training images may be drawn too."""
    given = [sample.split for sample in samples]
    if len(set(given)) == 1:  # a folder may be called "test" for any reason
        given = [None] * len(given)
    present = {split for split in given if split}
    for option, share, split in (("--test_share", how.test_share, "test"), ("--val_share", how.val_share, "val")):
        if share is not None and split in present:
            raise UserError(f"{source} has {split} images already, which are kept; leave out {option}")
    if "test" not in present and how.test_share is None:
        if present != {"train", "val"} or how.val_share is not None:
            raise UserError(
                f"{source} has no test images of its own; split it with --test_share 0.25, by patient with "
                "--patient_regex, or name the split of each image in a table with --splits"
            )
        say(f"densepath: {source} has no test images; its validation images become the test images")
        return ["test" if split == "val" else "train" for split in given]
    return [None if split in (None, "train") else split for split in given]


def _drawn(given: Sequence[str | None], owners: Sequence[str], how: Splitting) -> list[str]:
    """The split of each image: drawn by patient among those whose split is None."""
    free = {owner for owner, split in zip(owners, given, strict=True) if split is None}
    ranked = ordered_by_seed(free, how.seed)
    test = max(1, round(how.test_share * len(ranked))) if how.test_share is not None else 0
    val = max(1, round(how.val_share * len(ranked))) if how.val_share is not None else 0
    split_of = dict.fromkeys(ranked, "train") | dict.fromkeys(ranked[test : test + val], "val")
    split_of |= dict.fromkeys(ranked[:test], "test")
    return [split or split_of[owner] for owner, split in zip(owners, given, strict=True)]


def owners_of(samples: Sequence[Sample], regex: str | None) -> list[str]:
    """The patient of each image; an image without a known one is its own, as is the slide that it is a part of.

    Args:
        samples: the images.
        regex: finds the patient in the name of an image or a slide, as of :class:`Splitting`.

    Raises:
        UserError: it is not a regular expression, or does not match a name.
    """
    patients = {sample.image: sample.patient for sample in samples}
    names = {sample.image: sample.slide or sample.name for sample in samples}
    what = "slide" if any(sample.slide for sample in samples) else "image"
    if regex is None:
        report_unknown(list(patients.values()), list(names.values()), what)
        owners = {image: names[image] if patient is None else patient for image, patient in patients.items()}
        return [owners[sample.image] for sample in samples]
    places = names_below(map(str, names))
    owners = {image: patient_in_name(names[image], regex, place) for image, place in zip(names, places, strict=True)}
    if len(set(owners.values())) == len(owners) > 1:
        first = min(owners.values())
        say(f"densepath: warning: --patient_regex {regex!r} finds another patient in each {what}, first {first}")
    return [owners[sample.image] for sample in samples]


def _listed(samples: Sequence[Sample], table: Path) -> list[str]:
    """The split of each image in a table: by the last parts of its path, with or without suffix."""
    rows = _read_table(table)
    index = FileIndex(map(Path, rows), stems=True)
    found = {image: index.find(image) for image in dict.fromkeys(str(sample.image) for sample in samples)}
    missing = [image for image, files in found.items() if not files]
    index.report()
    refuse(missing, f"images that {table} does not list", "add them, or leave them out with --exclude")
    times = Counter(file for files in found.values() for file in files)
    unclear = [image for image, files in found.items() if len(files) > 1 or times[files[0]] > 1]
    refuse(unclear, f"images whose lines in {table} are not clear", "list them with their folders")
    astray = in_other_folders((image, files[0]) for image, files in found.items())
    refuse(astray, f"images whose lines in {table} name another folder than those of others", "correct these lines")
    return [rows[str(found[str(sample.image)][0])] for sample in samples]


def _read_table(path: Path) -> dict[str, str]:
    """File -> split."""
    try:
        with open_table(path, errors="surrogateescape") as table:
            # A data set's own manifest names the images as they were before.
            file, split = table.column(("source", *FILE_COLUMNS)), table.column([SPLIT])
            if file is None or split is None:
                raise UserError(f"{path} has no columns file and split; give a CSV file with this header")
            rows = [(row[file], row[split].lower()) for _, row in table.rows()]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); give a CSV file with the columns file and split") from None
    wrong = [f"{file}: {split or 'empty'}" for file, split in rows if split not in SPLIT_OF]
    refuse(wrong, f"{path} names splits other than train, val and test", "correct them")
    listed: dict[str, str] = {}
    for file, split in rows:
        if listed.setdefault(str(Path(file.strip())), SPLIT_OF[split]) != SPLIT_OF[split]:
            raise UserError(f"{path} gives {file} two splits; keep one of them")
    return listed
