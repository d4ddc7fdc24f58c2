"""``densepath data check`` of a store of volumes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from densepath.annotations.patients import patient_in_name
from densepath.core.errors import counted, first_few, one_line
from densepath.core.streams import write_result
from densepath.core.system import usable_cores, with_progress
from densepath.core.threads import in_threads
from densepath.datasets.shared_patients import Patients, odd_spellings, of_patients, patients_between
from densepath.datasets.volumes.sheet import draw_volumes
from densepath.sources.corrupt import CorruptImage
from densepath.sources.run_folders import refuse_among_images
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.store import VolumeStore
from densepath.sources.volumes.volume import voxel_mm3

_ALL = "all"  # volumes without splits
_DRAWN = 24  # volumes of all splits together, by default: a picture of about 1000 x 4000 px
_OUTSIDE = 0.1  # share of values outside of a volume's own window, of which there should be 1%


def check_volumes(data: Path, out: Path, count: int | None, patient_regex: str | None = None) -> Path:
    """Report what a store of volumes holds. Arguments as for :func:`~densepath.datasets.check.check_data`."""
    store = open_volumes(data)
    if count != 0:
        refuse_among_images(out, data)
    splits: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(store.rows):
        splits[row["split"] or _ALL].append(position)
    every = [
        row["patient"] if patient_regex is None else patient_in_name(row["name"], patient_regex) for row in store.rows
    ]
    patients = {split: [every[position] for position in positions] for split, positions in splits.items()}
    lines = [store.describe(), _window(store), *_splits(store, splits, patients), *_labels(store), *_copies(store)]
    for line in [*lines, *_read(store)]:
        write_result(one_line(line))
    if count is None:
        count = max(1, _DRAWN // len(splits))
    return draw_volumes(store, splits, out, count) or data if count else data


def _window(store: VolumeStore) -> str:
    names = store.index["channel_names"]
    channels = counted(store.spec.channels, "channel") + (f" ({', '.join(names)})" if names else "")
    low, high = store.spec.window
    shown = "each volume's own" if store.own_window else f"{low:g} to {high:g}"
    return f"{channels}, window: {shown}" + (f", modality {m}" if (m := store.index["modality"]) else "")


def _splits(store: VolumeStore, splits: Mapping[str, list[int]], patients: Mapping[str, Patients]) -> Iterator[str]:
    for split, positions in splits.items():
        labelled = sum(store.rows[position]["labels"] is not None for position in positions)
        yield f"{split}: {counted(len(positions), 'volume')}{of_patients(patients[split])}, {labelled} with labels"
    yield from odd_spellings(patients)
    yield from (line for _, _, line in patients_between(patients, "--patient_regex"))


def _labels(store: VolumeStore) -> Iterator[str]:
    """Of each label: in how many volumes it is, and how large."""
    sizes: dict[int, list[float]] = defaultdict(list)
    for row in store.rows:
        voxel = voxel_mm3(row["affine"])
        for code, count in (row["labels"]["voxels"] if row["labels"] else {}).items():
            sizes[int(code)].append(count * voxel)
    names = store.index["label_names"]
    if sizes:
        yield f"{'label':28}{'volumes':>8}{'mean mm^3':>14}{'least':>12}{'most':>12}"
    for code, found in sorted(sizes.items()):
        name = f"{code} {names[str(code)]}" if str(code) in names else str(code)
        yield f"{name:28}{len(found):>8}{sum(found) / len(found):>14,.0f}{min(found):>12,.0f}{max(found):>12,.0f}"
    if unknown := [code for code in sizes if names and str(code) not in names and code]:
        yield f"warning: labels without a name: {first_few(sorted(map(str, unknown)))}"


def _copies(store: VolumeStore) -> list[str]:
    """Volumes whose voxels are identical."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for row in store.rows:
        by_content[f"{row['size']} {row['crc']}"].append(row["name"])
    same = [" = ".join(names) for names in by_content.values() if len(names) > 1]
    return [f"identical volumes: {len(same)}{': ' * bool(same)}{first_few(same)}"]


def _read(store: VolumeStore) -> Iterator[str]:
    """Read everything: compare the checksums, and the values with each volume's own window."""
    own = store.own_window

    def check(position: int) -> tuple[str | None, bool]:
        try:
            values = store.read(position)
            store.labels(position)
        except CorruptImage as error:
            return str(error), False
        return None, own and ((values < 0) | (values > 1)).mean(axis=(0, 1, 2)).max() > _OUTSIDE

    work = in_threads(check, range(len(store)), min(4, usable_cores()), "volumes")
    found = list(with_progress(work, len(store), "checking"))
    damaged = [what for what, _ in found if what]
    yield f"damaged volumes: {len(damaged)}{': ' * bool(damaged)}{first_few(damaged)}"
    if narrow := [row["name"] for row, (_, outside) in zip(store.rows, found, strict=True) if outside]:
        yield (
            f"warning: {counted(len(narrow), 'volume')} with over {_OUTSIDE:.0%} of the values outside of the window "
            f"(start the command that made the store again, which computes windows of earlier versions again): "
            f"{first_few(narrow)}"
        )
