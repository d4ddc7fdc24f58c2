"""``densepath data lits``: LiTS, CT of the abdomen with labels of liver and liver tumors."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from densepath.core.errors import counted, first_few
from densepath.core.streams import say
from densepath.datasets.published import Published
from densepath.datasets.volumes.conversion import Case, Contents, Conversion, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.folder import stem
from densepath.sources.listing import walk
from densepath.sources.volumes.nifti import SUFFIXES
from densepath.sources.volumes.read import read_volume

LITS = Published(
    "LiTS",
    "https://competitions.codalab.org/competitions/17094",
    "CC BY-NC-ND 4.0",
    {"train": 131, "test": 70},
)
_NAME = re.compile(r"(test-)?(volume|segmentation)-(\d+)")


def convert_lits(how: Conversion) -> Path:
    """Convert LiTS to a store: ``volume-N.nii`` with ``segmentation-N.nii``, and ``test-volume-N.nii``.

    The source is searched with all its subfolders. What differs from the published data set is reported.

    Returns:
        The folder of the store.

    Raises:
        UserError: there is no volume, one is there twice, or none can be read.

    Source: Bilic et al., "The Liver Tumor Segmentation Benchmark (LiTS)", 2023.
    """
    source = source_folder(how.source)
    found = [(match, path) for path in map(Path, walk(source, SUFFIXES)) if (match := _NAME.fullmatch(stem(path)))]
    labels = {match[3]: path for match, path in found if match[2] == "segmentation" and not match[1]}
    volumes = [(match, path) for match, path in found if match[2] == "volume"]
    cases = [
        Case(
            stem(path),
            partial(read_volume, path, how.target),
            partial(read_volume, labels[match[3]], how.target) if not match[1] and match[3] in labels else None,
            split="test" if match[1] else "train",
            file=str(path),
            inputs=(path, *([labels[match[3]]] if not match[1] and match[3] in labels else [])),
        )
        for match, path in volumes
    ]
    numbers = {match[3] for match, _ in volumes if not match[1]}
    for what, lacking in (("labels", numbers - labels.keys()), ("volumes", labels.keys() - numbers)):
        if lacking:
            shown = first_few(sorted(lacking, key=int))
            say(f"densepath: warning: {counted(len(lacking), 'number has', 'numbers have')} no {what}: {shown}")
    dest = convert(cases, Contents("lits", "CT", {1: "liver", 2: "tumor"}), how)
    LITS.report({split: sum(case.split == split for case in cases) for split in LITS.images})
    return dest
