"""Which label map belongs to which image, by their names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from densepath.annotations.labels import LABEL_SUFFIXES
from densepath.core.errors import UserError, refuse
from densepath.core.output_names import names_below
from densepath.sources.listing import list_images

_KINDS = "label map (PNG, TIFF, BMP, .npy, .mat)"


def match_labels(images: Sequence[str], labels: str | Path, data: str | Path, whole: bool = True) -> list[Path]:
    """The label map of each image.

    Names are compared without suffix, and without an ending such as "_anno" that all maps, or all images, share. Of
    several maps with one name, the one in the subfolder of the image's name is taken.

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
    ends = ("", "") if set(stems) & set(own) else (common_ending(stems), common_ending(own))
    named: dict[str, list[int]] = defaultdict(list)
    for k, stem in enumerate(own):
        named[stem.removesuffix(ends[1])].append(k)
    folders = [os.path.dirname(name) for name in names_below(images, data)]
    of_maps = [os.path.dirname(name) for name in names_below(maps, labels)]
    places = []
    for stem, folder in zip(stems, folders, strict=True):
        found = named[stem.removesuffix(ends[0])]
        places.append([k for k in found if of_maps[k] == folder] or found if len(found) > 1 else found)
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
    return [Path(maps[k]) for k in used]


def common_ending(stems: Sequence[str]) -> str:
    """The ending from a "_", "-" or "." on that all names share; "" without one."""
    first, ending = stems[0], ""
    for stem in stems:
        while not stem.endswith(first):
            first = first[1:]
    for place, character in enumerate(first):
        if character in "_-.":
            ending = first[place:]
            break
    return "" if any(stem == ending for stem in stems) else ending


def beside(data: str | Path) -> Path:
    """The folder "labels" beside a folder of images, or in it.

    Raises:
        UserError: there is none.
    """
    for folder in (Path(data).parent / "labels", Path(data) / "labels"):
        if folder.is_dir() and Path(data).is_dir():
            return folder
    raise UserError(f"{data} has no folder labels beside it; name the label maps with --labels")
