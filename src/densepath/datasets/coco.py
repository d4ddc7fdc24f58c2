"""Converts COCO exports of annotation tools to images and COCO JSON in our layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from faster_coco_eval import mask as rle

from densepath.annotations.coco_checks import Orientation, check_instances
from densepath.annotations.coco_file import check_keys, holds_instances
from densepath.annotations.coco_writing import Objects
from densepath.annotations.image_mpp import stated_mpp
from densepath.annotations.outlines import has_outline
from densepath.annotations.patients import stated_patient
from densepath.core.columns import SPLITS
from densepath.core.errors import UserError, counted, first_few, refuse
from densepath.core.files import require_new_folder
from densepath.core.json_files import load_json
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.datasets.categories import Renaming
from densepath.datasets.exclusion import Exclusion
from densepath.datasets.find_files import FileIndex, image_folder, in_other_folders, split_in_folders, split_named
from densepath.datasets.samples import Sample, named_in_splits, with_patients, without_repeats
from densepath.datasets.splitting import Splitting, split_samples
from densepath.datasets.writing import write_samples
from densepath.sources.listing import SUFFIXES, walk

# Files of COCO next to instances_*.json, for other tasks on the same images.
_OTHER = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
Annotations = list[dict[str, Any]]


@take_single_values
def convert_coco(
    source: AnyPath,
    dest: str | Path,
    images: AnyPath | None = None,
    categories: Sequence[str] = (),
    crowds: Literal["keep", "objects"] = "keep",
    test_share: float | None = None,
    val_share: float | None = None,
    patient_regex: str | None = None,
    seed: int = 0,
    splits: str | Path | None = None,
    exclude: Sequence[str] = (),
    orientation: Orientation | None = None,
) -> Path:
    """Convert a COCO export (CVAT, Label Studio, Roboflow and others) to a data set for ``detect`` and ``probe``.

    All JSON files with COCO instances below the source are read: annotations/instances_default.json, result.json,
    train/_annotations.coco.json and so on. Outlines may be polygons or run lengths, compressed or not; objects may have
    a box only, which box detectors need. Categories are matched by their names. Splits that the source has (train,
    valid or val, test in the names of files or folders) are kept; validation images become the test images if there are
    no others. Image files are found by the last parts of their names, copied unchanged (BMP becomes PNG).
    Objects that repeat another one, with its image, category and outline, are left out.

    Args:
        source: the folder of the export, or one JSON file.
        dest: a new folder: train/, test/, annotations/train.json, annotations/test.json, manifest.csv.
        images: the folder of the images; by default that of the source.
        categories: new names of categories, OLD=NEW ...: several with one new name are merged, and objects of a
            category without one (OLD=) are left out.
        crowds: "objects" takes annotations marked iscrowd as single objects: CVAT exports all masks so.
        test_share: share of the patients, from 0 to 1, whose images become the test images.
        val_share: share of the patients whose images become validation images.
        patient_regex: a regular expression that finds the patient in an image's name, for example ^TCGA-..-....; if it
            has a group, the patient is what the first group matches. All images of a patient go to the same split.
            Without it, patients are those of the JSON (patient or patient_id of an image) or of a manifest.csv; an
            image without a known patient is its own patient.
        seed: seed of the split.
        splits: a CSV file with the columns file and split (train, val, test) of each image, for example the
            manifest.csv of another data set.
        exclude: patterns of image files to leave out: ``*`` and ``?`` in their name in the JSON, a folder or a name.
        orientation: which pixels of images with an orientation tag the annotations describe: "stored" in the file, or
            "viewed", turned by the tag. Without it such images are refused.

    Returns:
        ``dest``.

    Raises:
        UserError: there is no COCO JSON, images are missing or differ from it, more than 1% of the objects cannot be
            used, an option does not fit, or ``dest`` is not empty.
    """
    source, images = as_path(source), as_path(images)
    dest, source = require_new_folder(dest, "the data set", sources=(images or source,)), Path(source)
    renaming = Renaming(categories)
    root = source if source.is_dir() else source.parent
    files = {p: (content, split_named(p.stem) or split_in_folders(p, root)) for p, content in _find_files(source)}
    index = FileIndex(map(Path, walk(image_folder(source, images), SUFFIXES, runs=False)))
    samples: list[Sample] = []
    names: list[str] = []
    listed: Counter[Path] = Counter()
    excluded = Exclusion(exclude)
    for path, (content, split) in sorted(files.items(), key=lambda each: SPLITS.index(each[1][1] or "train")):
        truth, found = _read(path, content, index, excluded, crowds, orientation, split)
        kinds = {category["id"]: category["name"].strip() for category in truth["categories"]}
        names += kinds.values()
        objects = without_repeats(_by_image(truth, kinds, renaming), path)
        listed.update(file.resolve() for file in found.values())
        for image in truth["images"]:
            held = objects.get(image["id"], [])
            known, mpp = stated_patient(image), stated_mpp(image)
            samples.append(Sample("", found[image["id"]], _returning(held), known, split, mpp))
    index.report()
    renaming.check(names)
    twice = [str(file) for file, times in listed.items() if times > 1]
    refuse(twice, f"images that {source} lists more than once", "list each image once, in one JSON file")
    if (others := index.count - len(listed)) and not exclude:
        say(f"densepath: {source}: {counted(others, 'image file')} left out that no JSON file lists")
    excluded.report(source)
    if not samples:
        raise UserError(f"{source} lists no image")
    kept = _used([name for old in dict.fromkeys(names) if (name := renaming(old))], samples, source)
    how = Splitting(test_share, val_share, patient_regex, seed, splits)
    samples = with_patients(named_in_splits(samples, splits is not None), source, images=images)
    parts, patients = split_samples(samples, how, source)
    write_samples(dest, parts, kept, "object", orientation, patients)
    return dest


def _find_files(source: Path) -> list[tuple[Path, Any]]:
    """The JSON files with COCO instances, with their content."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give the folder of a COCO export, or its JSON file")
    if not source.is_dir():
        return [(source, load_json(source, "a COCO instances JSON"))]
    paths = [Path(name) for name in walk(source, (".json",))]
    usual = {path.parent for path in paths if path.name.startswith("instances_")}
    paths = [path for path in paths if path.parent not in usual or not path.name.startswith(_OTHER)]
    read = ((path, load_json(path, "a COCO instances JSON")) for path in paths)
    found = [(path, content) for path, content in read if holds_instances(content)]
    if not found:
        raise UserError(f"{source} holds no JSON file with COCO instances; give the folder of a COCO export")
    return found


def _read(
    path: Path,
    content: Any,
    index: FileIndex,
    excluded: Exclusion,
    crowds: str,
    orientation: Orientation | None,
    split: str | None,
) -> tuple[dict[str, Any], dict[int, Path]]:
    """A JSON file, checked against its images; and the file of each image by its id."""
    truth = check_keys(content, path)
    gone = {image["id"] for image in truth["images"] if excluded(image["file_name"].replace("\\", "/"))}
    truth["images"] = [image for image in truth["images"] if image["id"] not in gone]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] not in gone]
    candidates = {image["id"]: index.find(image["file_name"], path.parent, split) for image in truth["images"]}
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    missing = [names[number] for number, found in candidates.items() if not found]
    refuse(missing, f"images of {path} that are missing", "put them next to it, or give their folder with --images")
    several = [f"{names[n]} ({' or '.join(map(str, found[:2]))})" for n, found in candidates.items() if len(found) > 1]
    refuse(several, f"images of {path} whose files are not clear", "give the folder of the images with --images")
    files = {number: found[0] for number, found in candidates.items()}
    astray = in_other_folders((names[number], file.absolute()) for number, file in files.items())
    refuse(astray, f"images of {path} that are not in the folder of the others", "put them there, or --exclude them")
    bare = {id(a) for a in truth["annotations"] if not has_outline(a.get("segmentation"))}
    if crowds == "objects":
        for annotation in truth["annotations"]:
            annotation["iscrowd"] = 0
    if truth["images"]:
        truth = check_instances(truth, path, files, outlines=False, orientation=orientation)
    boxes = [annotation for annotation in truth["annotations"] if id(annotation) in bare]
    for annotation in boxes:
        annotation["segmentation"] = []
    if boxes:
        say(f"densepath: {path}: {len(boxes):,} of {len(truth['annotations']):,} objects have a box and no outline")
    many = sum(annotation["iscrowd"] for annotation in truth["annotations"])
    if many and many == len(truth["annotations"]):
        say(
            f"densepath: warning: {path}: all of its {many:,} annotations are marked iscrowd, which are not used as "
            "objects; if they are single objects, give --crowds objects"
        )
    return truth, files


def _by_image(truth: dict[str, Any], kinds: Mapping[int, str], renaming: Renaming) -> dict[int, Annotations]:
    """The annotations of each image as they are written, with the new names of their categories."""
    found: dict[int, Annotations] = {}
    for annotation in truth["annotations"]:
        name = renaming(kinds[annotation["category_id"]])
        if name is not None:
            outline, (_, _, width, height) = annotation["segmentation"], annotation["bbox"]
            area = annotation.get("area") or (int(rle.area(outline)) if outline else width * height)
            kept = {key: annotation[key] for key in ("segmentation", "bbox", "iscrowd")}
            found.setdefault(annotation["image_id"], []).append({"category": name, "area": area} | kept)
    return found


def _used(names: Sequence[str], samples: Sequence[Sample], source: Path) -> list[str]:
    """The categories that an object has, once each."""
    present = {each["category"] for sample in samples for each in sample.objects()}
    every = list(dict.fromkeys(names))
    if unused := [name for name in every if name not in present]:
        say(f"densepath: {source} has no object of {first_few(unused)}; left out of the categories")
    if not present:
        raise UserError(f"{source} has no object; outline some, or check --categories")
    return [name for name in every if name in present]


def _returning(objects: Annotations) -> Callable[[], Objects]:
    return lambda: objects
