"""Which label map belongs to which image, by their names."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from densepath.annotations.labels import LABEL_SUFFIXES
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.output_names import names_below
from densepath.core.streams import say
from densepath.sources.listing import list_images

_KINDS = "label map (PNG, TIFF, BMP, .npy, .mat)"
_CHANNEL = "_0000"  # of the only channel, in the names of nnU-Net's images
_LETTER = re.compile(r"[^\W\d_]")


def match_labels(
    images: Sequence[str],
    labels: str | Path,
    data: str | Path,
    whole: bool = True,
    otherwise: str = "leave images out with --exclude",
) -> list[Path]:
    """The label map of each image.

    Names are compared without suffix. If none is equal, an ending such as "_anno" that all maps, or all images, share
    is left out: see :func:`endings`. Of several maps with one name, the one in the subfolder of the image's name is
    taken. If images and maps have subfolders in common, a map in another subfolder is taken only if ``data`` has no
    such subfolder, and only one image and one map have the name.

    Args:
        images: paths of the images.
        labels: a folder, list or glob of label maps.
        data: where the images were found.
        whole: whether a map without an image is refused.
        otherwise: what the user can do about images without a map, instead of naming maps as them.

    Raises:
        UserError: an image has no map, or several; or a map has no image.
    """
    maps = [str(path) for path in list_images(labels, suffixes=LABEL_SUFFIXES, kinds=_KINDS)]
    stems = [os.path.splitext(os.path.basename(path))[0] for path in images]
    own = [os.path.splitext(os.path.basename(path))[0] for path in maps]
    ends = endings(stems, own)
    named: dict[str, list[int]] = defaultdict(list)
    for k, stem in enumerate(own):
        named[stem.removesuffix(ends[1])].append(k)
    folders = [os.path.dirname(name) for name in names_below(images, data)]
    of_maps = [os.path.dirname(name) for name in names_below(maps, labels)]
    alike = bool(set(folders) & set(of_maps) - {""})
    taken = {*folders, *(folder for folder in of_maps if os.path.isdir(os.path.join(data, folder)))}
    count = Counter(stem.removesuffix(ends[0]) for stem in stems)
    places = []
    for stem, folder in zip(stems, folders, strict=True):
        name = stem.removesuffix(ends[0])
        found = named[name]
        if alike and folder:
            unique = count[name] == len(found) == 1
            found = [k for k in found if of_maps[k] in (folder, "") or (unique and of_maps[k] not in taken)]
        places.append([k for k in found if of_maps[k] == folder] or found)
    shown = names_below(images, data)
    remedy = f"name label maps in {labels} as their images, or {otherwise}"
    missing = [name for name, place in zip(shown, places, strict=True) if not place]
    refuse(missing, "images without a label map", f"{_endings_found(stems, own, ends)}{remedy}")
    refuse(
        [n for n, place in zip(shown, places, strict=True) if len(place) > 1], "images with several label maps", remedy
    )
    used = [k for (k,) in places]
    if len(set(used)) < len(used):
        twice = [n for n, k in zip(shown, used, strict=True) if used.count(k) > 1]
        refuse(twice, "images that share a label map", "give images of different names, or in the same subfolders")
    if whole:
        unused = [maps[k] for k in sorted(set(range(len(maps))) - set(used))]
        refuse(unused, "label maps without an image", "add the images, or give only the maps of these")
    _say_differences(shown, [names_below(maps, labels)[k] for k in used], ends)
    return [Path(maps[k]) for k in used]


def endings(images: Sequence[str], maps: Sequence[str]) -> tuple[str, str]:
    """The shortest endings, from a "_", "-" or "." on, without which a name of an image is that of a map.

    All images, and all maps, share theirs; "" for none. Endings in which each part has a letter are preferred, as
    numbers tell images apart: see :func:`_are_endings`.
    """
    pairs = [(one, other) for one in _shared_endings(images) for other in _shared_endings(maps)]
    for one, other in sorted(pairs, key=lambda pair: (any(map(_numbers, pair)), all(pair), sum(map(len, pair)))):
        left = [name.removesuffix(one) for name in images], [name.removesuffix(other) for name in maps]
        if set(left[0]) & set(left[1]) - {""} and _are_endings(one, other, *left):
            return one, other
    return "", ""


def _are_endings(one: str, other: str, images: Sequence[str], maps: Sequence[str]) -> bool:
    """Whether endings may be left out of the names of images and of maps.

    Not those with different numbers, such as "_2020" and "_2021_mask". Those with a part without a letter only if there
    are several images, and exactly one map for each.

    Args:
        one, other: the endings of images and of maps.
        images, maps: the names without them.
    """
    if one != other and re.sub(r"\d+", "0", one) == re.sub(r"\d+", "0", other):
        return False
    numbers = [re.findall(r"\d+", ending.removesuffix(_CHANNEL)) for ending in (one, other)]
    if all(numbers) and numbers[0] != numbers[1]:
        return False
    return not (_numbers(one) or _numbers(other)) or (len(images) > 1 and sorted(images) == sorted(maps))


def _numbers(ending: str) -> list[str]:
    """The parts of an ending without a letter; none of nnU-Net's "_0000"."""
    parts = [] if ending == _CHANNEL else re.split("[-_.]", ending)
    return [part for part in parts if part and not _LETTER.search(part)]


def _shared_endings(stems: Sequence[str]) -> list[str]:
    """Endings that all names share, and "" for none."""
    first = stems[0]
    places = [place for place, character in enumerate(first) if character in "_-."]
    return ["", *(first[place:] for place in places if all(stem.endswith(first[place:]) for stem in stems))]


def _endings_found(images: Sequence[str], maps: Sequence[str], ends: tuple[str, str]) -> str:
    """The endings of names that are left out, or else those that all have, for a message; "" without any."""
    if any(ends):
        return f"names are compared without {_in_words(ends)}; "
    shared = tuple(max(_shared_endings(names), key=len) for names in (images, maps))
    return f"the names have the endings {_in_words(shared)}; " if any(shared) else ""


def _in_words(ends: Sequence[str]) -> str:
    """The endings of images and of label maps that are not empty."""
    return " and ".join(f"{end} of {whose}" for end, whose in zip(ends, ("images", "label maps"), strict=True) if end)


def _say_differences(images: Sequence[str], maps: Sequence[str], ends: tuple[str, str]) -> None:
    """Say how names of images and of their maps differ."""
    if any(ends):
        say(f"densepath: names are compared without {_in_words(ends)}, as in {images[0]} with {maps[0]}")
    pairs = zip(images, maps, strict=True)
    folders = [(a, b) for a, b in pairs if os.path.dirname(a) != os.path.dirname(b) and os.sep in a and os.sep in b]
    if folders:
        shown = first_few([f"{image} with {path}" for image, path in folders])
        say(f"densepath: {counted(len(folders), 'label map')} of another folder than the image: {shown}")


def beside(data: str | Path) -> Path:
    """The folder "labels" beside a folder of images, or in it.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(data).parent / "labels", Path(data) / "labels"):
        if folder.is_dir() and Path(data).is_dir():
            return folder
    raise UserError(f"{data} has no folder labels beside it; name the label maps with --labels")
