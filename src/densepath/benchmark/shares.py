"""The labelled images of tasks whose pre-training sees a share of the images: those that it leaves out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from densepath.annotations.patients import comparable_owners, owners_by_name
from densepath.benchmark.identity import ImageSet, listed_patients
from densepath.core.digests import digest_of
from densepath.core.files import atomic_write
from densepath.sources.packing import SUFFIX
from densepath.training.division import named_below
from densepath.training.run_images import divided

LEFT_IMAGES = "train_images"  # the option that takes the list


def write_left_images(tiles: ImageSet, fraction: float, seed: int, folder: Path) -> Path:
    """Write what ``pretrain --fraction`` leaves out of some images, as a list for ``classify --train_images``.

    Args:
        tiles: the images for pre-training.
        fraction, seed: options of the pre-training.
        folder: where the list is kept.

    Returns:
        The list, whose name has a digest of its lines: paths of images, and patients where they are known.
    """
    text = _lines(tiles.source, tiles.names, tuple(tiles.owners.items()), fraction, seed)
    path = folder.absolute() / f"left_images-{digest_of([text])[:10]}.txt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8", errors="surrogateescape")
    return path


def digest_for_shares(tiles: ImageSet) -> str:
    """The digest of images of which pre-training sees, or holds out, a share by patient: known patients count too."""
    if tiles.slides:
        return tiles.digest
    patients = _listed(tiles.source, tiles.names, tuple(tiles.owners.items()))
    return digest_of([tiles.digest, *patients]) if patients else tiles.digest


@lru_cache(maxsize=4)
def _listed(source: str, names: tuple[str, ...], volumes: tuple[tuple[str, str], ...]) -> list[str]:
    owned = [f"{volume} {owner}" for volume, owner in volumes if owner != volume]
    return owned if volumes else listed_patients(source, names)


@lru_cache(maxsize=2)
def _patients(source: str, names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The known patients of images, and all owners as ``pretrain`` has them; once for all runs of a table."""
    owners = owners_by_name(source, names)[0]
    packed = source.lower().endswith(SUFFIX)
    return comparable_owners(source, names), owners if packed else named_below(owners, names)


@lru_cache(maxsize=16)
def _lines(
    source: str, names: tuple[str, ...], volumes: tuple[tuple[str, str], ...], fraction: float, seed: int
) -> str:
    """The lines of a list, which every row of a table asks for. ``volumes``: pairs of a volume and its patient."""
    known, owners = dict(volumes), [owner for _, owner in volumes]
    if not volumes:
        known, owners = _patients(source, names)
    left = [names[p] for p in divided(owners, fraction, seed)[1].tolist()]
    paths = [] if volumes else [str(Path(name).absolute()) for name in left]
    lines = [*paths, *sorted({known[name] for name in left if name in known})]
    return "".join(f"{line}\n" for line in lines)
