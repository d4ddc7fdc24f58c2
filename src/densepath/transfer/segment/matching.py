"""Which label map belongs to which image, by their names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from densepath.annotations.labels import LABEL_SUFFIXES
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.output_names import names_below
from densepath.core.streams import say
from densepath.sources.listing import list_images

_KINDS = "label map (PNG, TIFF, BMP, .npy, .mat)"
_CHANNEL = "_0000"  # of the only channel, in the names of nnU-Net's images
_WORDS = re.compile(r"([-_.][^-_.]*[^\W\d_][^-_.]*)+")  # parts with a letter each


def match_labels(images: Sequence[str], labels: str | Path, data: str | Path, whole: bool = True) -> list[Path]:
    """The label map of each image.

    Names are compared without suffix. If none is equal, an ending such as "_anno" that all maps, or all images, share
    is left out: see :func:`endings`. Of several maps with one name, the one in the subfolder of the image's name is
    taken, and of images and maps that have subfolders in common only the one in this.

    Args:
        images: paths of the images.
        labels: a folder, list or glob of label maps.
        data: where the images were found.
        whole: whether a map without an image is refused.

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
    places = []
    for stem, folder in zip(stems, folders, strict=True):
        found = named[stem.removesuffix(ends[0])]
        if alike and folder:
            found = [k for k in found if of_maps[k] in (folder, "")]
        places.append([k for k in found if of_maps[k] == folder] or found)
    shown = names_below(images, data)
    remedy = f"name label maps in {labels} as their images, or leave images out with --exclude"
    refuse([n for n, place in zip(shown, places, strict=True) if not place], "images without a label map", remedy)
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

    All images, and all maps, share theirs; "" for none. An ending has a letter in each part, or is nnU-Net's "_0000",
    as a number tells images apart. If both have an ending, these have no other digit, and there are several images.
    """
    pairs = [(one, other) for one in _shared_endings(images) for other in _shared_endings(maps)]
    for one, other in sorted(pairs, key=lambda pair: (bool(pair[0] and pair[1]), len(pair[0]) + len(pair[1]))):
        distinguishing = one and other and (len(images) == 1 or re.search(r"\d", f"{one}{other}".replace(_CHANNEL, "")))
        left = {name.removesuffix(one) for name in images} & {name.removesuffix(other) for name in maps}
        if left - {""} and not distinguishing:
            return one, other
    return "", ""


def _shared_endings(stems: Sequence[str]) -> list[str]:
    """Endings that all names share, and "" for none."""
    first = stems[0]
    places = [place for place, character in enumerate(first) if character in "_-."]
    found = [first[place:] for place in places if all(stem.endswith(first[place:]) for stem in stems)]
    return ["", *(end for end in found if end == _CHANNEL or _WORDS.fullmatch(end))]


def _say_differences(images: Sequence[str], maps: Sequence[str], ends: tuple[str, str]) -> None:
    """Say how names of images and of their maps differ."""
    if any(ends):
        parts = [f"{end} of {whose}" for end, whose in zip(ends, ("images", "label maps"), strict=True) if end]
        say(f"densepath: names are compared without {' and '.join(parts)}, as in {images[0]} with {maps[0]}")
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
