"""``densepath data msd``: a task of the Medical Segmentation Decathlon."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from densepath.core.closing import command
from densepath.core.errors import UserError, counted, first_few
from densepath.core.streams import say
from densepath.datasets.volumes.conversion import Case, Contents, Conversion, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.dataset_json import DATASET_JSON, channels_of, labels_of, reading
from densepath.datasets.volumes.folder import stem, volumes_in
from densepath.sources.volumes.read import count_channels, read_channels, read_volume


def convert_msd(how: Conversion) -> Path:
    """Convert a task of the Medical Segmentation Decathlon to a store.

    The source is the folder with ``dataset.json``, ``imagesTr``, ``labelsTr`` and perhaps ``imagesTs``; the fourth
    dimension of its files is that of channels. A volume whose file is missing or damaged is named and left out.

    Returns:
        The folder of the store.

    Raises:
        UserError: there is no task in the source, a volume is listed twice, or none can be read.

    Source: http://medicaldecathlon.com (CC BY-SA 4.0).
    """
    source = source_folder(how.source)
    with reading(source / DATASET_JSON, "the dataset.json of a task of MSD") as facts:
        if "training" not in facts and "channel_names" in facts:
            again = command("data", "nnunet", source, how.dest)
            raise UserError(f"{source / DATASET_JSON} is that of nnU-Net's layout; convert it with {again}")
        listed = [(source / item["image"], source / item["label"], "train") for item in facts["training"]]
        listed += [(source / item, None, "test") for item in facts.get("test", ())]
        modality, labels = channels_of(facts), labels_of(facts)
    cases = [
        Case(
            stem(image),
            partial(read_channels, [image], how.target),
            partial(read_volume, label, how.target) if label is not None else None,
            split=split,
            file=str(image),
            inputs=(image, *([label] if label is not None else [])),
            count=partial(count_channels, image),
        )
        for image, label, split in listed
    ]
    for split, key in (("train", "numTraining"), ("test", "numTest")):
        count = sum(case.split == split for case in cases)
        if facts.get(key, count) != count:
            say(f"densepath: warning: {count} {split} volumes are listed, and dataset.json counts {facts[key]}")
    known = {image.resolve() for image, _, _ in listed}
    folders = [folder for folder in (source / "imagesTr", source / "imagesTs") if folder.is_dir()]
    more = [path.name for folder in folders for path in volumes_in(folder).values() if path.resolve() not in known]
    if more:
        say(
            f"densepath: warning: {counted(len(more), 'file is', 'files are')} not in dataset.json: "
            f"{first_few(sorted(more))}"
        )
    kind = "CT" if modality == ("CT",) else "MR" if modality else ""
    return convert(cases, Contents("msd", kind, labels, modality), how)
