"""Instances in COCO's format next to their images, read as detection samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from densepath.annotations.coco_boxes import corners_of
from densepath.annotations.coco_checks import Orientation, check_coco
from densepath.annotations.fraction import check_fraction, choose_fraction
from densepath.annotations.image_mpp import file_mpp, stated_mpp
from densepath.annotations.outlines import Outline, mostly_hidden, paint, part_of, run_lengths, union
from densepath.annotations.patients import patients_of, stated_patient
from densepath.core.errors import UserError, counted
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_header, read_image
from densepath.sources.pixel_source import PixelSpec
from densepath.sources.tiff import turn

_RGB = PixelSpec()
CACHED_BYTES = 2**29  # data sets whose decoded images are smaller than this stay in RAM


class CocoImages(Dataset[dict[str, Any]]):
    """Images with their instances from a COCO JSON; a sample is a dict of

    - image (H, W, C), by default RGB uint8, masks bool (N, H, W), boxes float32 (N, 4) x1 y1 x2 y2 in pixels, labels
      int64 (N,): the categories in the order of their ids, counted from 1; all of them NumPy arrays;
    - image_id, from the JSON; name, the file's name.

    Annotations marked ``iscrowd`` are not used as objects; only :meth:`coco_ground_truth` contains them.

    Args:
        folder: folder of the images.
        annotations: COCO instances JSON; outlines may be polygons or run lengths, compressed or not.
        spec: the pixels for a network: grey or RGB, read as 16 bits if its window needs them.
        outlines: whether every object needs an outline; otherwise its box is enough.
        orientation: which pixels of images with an orientation tag the annotations describe: as stored in the file, or
            as shown by a viewer. None refuses such images.

    Attributes:
        annotations: the JSON's path.
        spec: the argument.
        category_ids: the JSON's id of label 1, 2, ...
        category_names: the names of the labels.

    Raises:
        UserError: the JSON and the images do not match; the message names the first cases.
    """

    def __init__(
        self,
        folder: str | Path,
        annotations: str | Path,
        spec: PixelSpec = _RGB,
        outlines: bool = True,
        orientation: Orientation | None = None,
    ) -> None:
        self.folder, self.annotations = Path(folder), Path(annotations)
        if spec.ndim != 2 or spec.channels not in (1, 3):
            raise UserError(
                f"outlined images are grey or RGB, but the weights need {counted(spec.channels, 'channel')}; use "
                "other weights"
            )
        self.spec = spec
        self._truth = check_coco(self.folder, self.annotations, outlines, orientation)
        self._viewed = orientation == "viewed"
        names = {category["id"]: category["name"] for category in self._truth["categories"]}
        self.category_ids = sorted(names)
        self.category_names = [names[number] for number in self.category_ids]
        self._images: list[dict[str, Any]] = self._truth["images"]
        self._objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self._images}
        for annotation in self._truth["annotations"]:
            if not annotation.get("iscrowd", 0):
                self._objects[annotation["image_id"]].append(annotation)
        self._bounds: dict[int, npt.NDArray[np.float64]] = {}
        pixels = sum(image["height"] * image["width"] for image in self._images)
        self._cache: dict[str, npt.NDArray[Any]] | None = {} if 3 * pixels <= CACHED_BYTES else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.sample(index)

    @property
    def cached(self) -> bool:
        """Whether decoded images stay in memory."""
        return self._cache is not None

    @property
    def objects(self) -> int:
        """The number of objects of all images."""
        return sum(len(self._objects[image["id"]]) for image in self._images)

    @property
    def crowds(self) -> int:
        """The number of annotations marked ``iscrowd``."""
        return len(self._truth["annotations"]) - self.objects

    def sample(self, index: int, masks: bool = True) -> dict[str, Any]:
        """A sample; with ``masks=False`` its masks are (0, H, W): they take longer to decode than the image."""
        image = self._images[index]
        objects = self._objects[image["id"]]
        limits = np.array([image["width"], image["height"]] * 2, np.float32)
        return {
            "image": self._read(image["file_name"]),
            "boxes": np.clip(self._boxes(objects), 0, limits),
            "masks": self._masks(image, objects if masks else []),
            "labels": self._labels(objects),
            "image_id": image["id"],
            "name": image["file_name"],
        }

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        image = self._images[index]
        return image["height"], image["width"]

    def mpp(self, index: int) -> float | None:
        """µm per pixel of an image, as the JSON says (``mpp``) or the resolution tags of a TIFF.

        Returns:
            None if they are unknown, or differ by 10% or more between height and width.
        """
        image = self._images[index]
        return stated_mpp(image) if image.get("mpp") else file_mpp(self.folder / image["file_name"])

    def crop(self, index: int, left: int, top: int, side: int) -> dict[str, Any]:
        """A sample of a square of an image: the visible parts of its objects, with tight boxes.

        Only masks of what it shows are drawn: those of a thousand nuclei of an image would take a gigabyte.

        Args:
            left, top, side: the square, in pixels; it is clipped to the image.
        """
        image = self._images[index]
        objects = self._objects[image["id"]]
        bounds = self._bounds_of(index)
        near = np.all((bounds[:, :2] < (left + side, top + side)) & (bounds[:, 2:] > (left, top)), axis=1)
        pixels = self._read(image["file_name"], (slice(top, top + side), slice(left, left + side)))
        parts = ((o, part_of(o["segmentation"], top, left, pixels.shape[:2])) for o in compress(objects, near))
        seen = [(o, part) for o, part in parts if part.any()]
        masks = np.array([part for _, part in seen], bool).reshape(-1, *pixels.shape[:2])
        return {
            "image": np.ascontiguousarray(pixels),
            "boxes": np.array([_bounds(mask) for mask in masks], np.float32).reshape(-1, 4),
            "masks": masks,
            "labels": self._labels([o for o, _ in seen]),
            "image_id": image["id"],
            "name": image["file_name"],
        }

    def foreground(self, index: int) -> npt.NDArray[np.bool_]:
        """The pixels (H, W) of the image's objects, in less time and memory than their masks take."""
        return union(self._outlines(index), *self.size(index))

    def label_map(self, index: int) -> npt.NDArray[np.int32]:
        """The image's objects as one map (H, W): 0 is background, 1..N the annotations, smaller ones on top."""
        return paint(self._outlines(index), *self.size(index))

    def mostly_hidden(self, index: int, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """(N,) whether each of the image's objects keeps fewer than half of its pixels in its label map."""
        return mostly_hidden(labels, self._outlines(index))

    def keep_fraction(self, fraction: float, seed: int) -> None:
        """Keep only a share of the images, as :func:`~densepath.annotations.fraction.choose_fraction` chooses it.

        Patients are those of the JSON's images (``patient`` or ``patient_id``), or of a ``manifest.csv``.

        Raises:
            UserError: the share is invalid.
        """
        check_fraction(fraction)
        if fraction == 1:
            return
        paths = [str(self.folder / image["file_name"]) for image in self._images]
        listed = patients_of(self.folder, paths)
        named = [stated_patient(image) for image in self._images]
        # A patient and an image may have the same name.
        known = [listed.get(path) if name is None else name for name, path in zip(named, paths, strict=True)]
        owners = [
            f"image {path}" if name is None else f"patient {name}" for name, path in zip(known, paths, strict=True)
        ]
        self._images = [self._images[i] for i in choose_fraction(owners, fraction, seed)]
        kept = {image["id"] for image in self._images}
        some = [annotation for annotation in self._truth["annotations"] if annotation["image_id"] in kept]
        self._truth = {**self._truth, "images": self._images, "annotations": some}

    def coco_ground_truth(self) -> dict[str, Any]:
        """The JSON's content, crowds included, for an evaluator; outlines are compressed run lengths."""
        return self._truth

    def order_categories(self, names: Sequence[str]) -> None:
        """Let the labels 1, 2, ... be the categories of these names, which are all names of this JSON."""
        id_of = dict(zip(self.category_names, self.category_ids, strict=True))
        self.category_ids, self.category_names = [id_of[name] for name in names], list(names)

    def absent_categories(self) -> list[str]:
        """The names of the categories without an object."""
        present = {annotation["category_id"] for objects in self._objects.values() for annotation in objects}
        pairs = zip(self.category_ids, self.category_names, strict=True)
        return [name for number, name in pairs if number not in present]

    def annotations_of(self, index: int) -> list[dict[str, Any]]:
        """The annotations of an image's objects, from the JSON."""
        return self._objects[self._images[index]["id"]]

    def paths(self) -> list[Path]:
        """The image files."""
        return [self.folder / image["file_name"] for image in self._images]

    def _read(self, name: str, window: tuple[slice, ...] = ()) -> npt.NDArray[Any]:
        if self._cache is not None and name in self._cache:
            return self._cache[name][window].copy()
        dtype = self.spec.image_dtype
        try:
            pixels = read_image(self.folder / name, channels=self.spec.channels, dtype=dtype)
            if self._viewed:
                pixels = turn(pixels, read_header(self.folder / name).orientation)
        except CorruptImage as error:
            raise UserError(f"{error}; replace the file or take it out of {self.annotations}") from error
        if self._cache is not None:
            self._cache[name] = pixels.copy()
        return pixels[window]

    def _outlines(self, index: int) -> list[Outline]:
        return [annotation["segmentation"] for annotation in self.annotations_of(index)]

    def _bounds_of(self, index: int) -> npt.NDArray[np.float64]:
        """(N, 4) x1 y1 x2 y2 of an image's outlines, computed once: a JSON's boxes may be smaller."""
        image = self._images[index]["id"]
        if image not in self._bounds:
            self._bounds[image] = corners_of(run_lengths().toBbox(self._outlines(index)))
        return self._bounds[image]

    def _masks(self, image: dict[str, Any], objects: list[dict[str, Any]]) -> npt.NDArray[np.bool_]:
        """(N, H, W)"""
        masks = np.zeros((len(objects), image["height"], image["width"]), bool)
        for mask, annotation in zip(masks, objects, strict=True):
            mask[:] = self._mask(annotation)
        return masks

    def _mask(self, annotation: dict[str, Any]) -> npt.NDArray[np.bool_]:
        """(H, W)"""
        mask: npt.NDArray[np.bool_] = run_lengths().decode(annotation["segmentation"]).astype(bool)
        return mask

    def _boxes(self, objects: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
        """(N, 4) x1 y1 x2 y2"""
        boxes = np.array([o["bbox"] for o in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def _labels(self, objects: list[dict[str, Any]]) -> npt.NDArray[np.int64]:
        """(N,)"""
        return np.array([self.category_ids.index(o["category_id"]) + 1 for o in objects], np.int64)


def _bounds(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The bounding box x1 y1 x2 y2 of a mask (H, W)."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def annotations_of(data: str | Path, split: str) -> Path:
    """The file of instances of one split of a data set, as ``write_coco`` lays it out."""
    return Path(data) / "annotations" / f"{split}.json"


def open_split(
    data: str | Path,
    split: Literal["train", "test"],
    spec: PixelSpec = _RGB,
    outlines: bool = True,
    orientation: Orientation | None = None,
) -> CocoImages:
    """The images and instances of one split of a data set, as ``write_coco`` lays it out.

    Args:
        data: the data set.
        split: the split.
        spec, outlines, orientation: as for :class:`CocoImages`.

    Raises:
        UserError: there is no such split, or as for :class:`CocoImages`.
    """
    folder, annotations = Path(data) / split, annotations_of(data, split)
    if not annotations.is_file() or not folder.is_dir():
        raise UserError(
            f"{data} is not a data set of outlined images: it needs {split}/ with the images and "
            f"annotations/{split}.json with their instances in COCO's format, as `densepath data glas` writes them"
        )
    return CocoImages(folder, annotations, spec, outlines, orientation)
