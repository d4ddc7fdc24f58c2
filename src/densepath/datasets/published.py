"""Facts about published data sets: where they come from, their licences, and how many images they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from densepath.core.streams import say


@dataclass(frozen=True)
class Published:
    """A data set as its authors published it.

    Args:
        name: its name.
        place: where it is published.
        terms: licence, or conditions of its use.
        images: number of images by split or class.
        mpp: µm per pixel, where the data set says it and its files do not.
    """

    name: str
    place: str
    terms: str
    images: Mapping[str, int]
    mpp: float | None = None

    def report(self, found: Mapping[str, int]) -> None:
        """Print the facts, and where the numbers of images that were found differ.

        Args:
            found: number of images by split or class.
        """
        counts = ", ".join(f"{count:,} {key}" for key, count in self.images.items())
        say(f"densepath: {self.name} as published: {counts} images; {self.terms}; {self.place}")
        unlike = [
            f"{found.get(key, 0):,} {key} images, not {count:,}"
            for key, count in self.images.items()
            if found.get(key, 0) != count
        ]
        unlike += [f"{count:,} {key} images, not 0" for key, count in found.items() if key not in self.images]
        if unlike:
            say(f"densepath: this copy differs from the published one: it has {'; '.join(unlike)}")


# Numbers and terms: the challenge's page, and Sirinukunwattana et al. 2017, also for the size of a pixel.
GLAS = Published(
    "GlaS",
    "https://glas.grand-challenge.org/Dataset",
    "for research only, no commercial use, cite the challenge's papers",
    {"train": 85, "test": 80},
    mpp=0.62005,
)
# Numbers and terms: the data set's README (version 2), which names no licence. Size of a pixel: Graham et al. 2019.
CRAG = Published(
    "CRAG",
    "https://warwick.ac.uk/fac/cross_fac/tia/data/mildnet/",
    "publications must cite the MILD-Net paper",
    {"train": 173, "test": 40},
    mpp=0.55,
)
NCT_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
NCT = Published(
    "NCT-CRC-HE-100K",
    "https://doi.org/10.5281/zenodo.1214456",
    "CC BY 4.0, nine classes, 224 px at 0.5 µm/px",
    {"tissue": 100_000},
)
MHIST = Published(
    "MHIST",
    "https://bmirds.github.io/MHIST",
    "on request, for research, cite Wei et al. 2021",
    {"train": 2175, "test": 977},
)
CHAOYANG = Published(
    "Chaoyang",
    "https://bupt-ai-cz.github.io/HSA-NRL",
    "on request, not for commercial use, cite Zhu et al. 2021",
    {"train": 4021, "test": 2139},
)
PCAM = Published(
    "PatchCamelyon",
    "https://doi.org/10.5281/zenodo.2546921",
    "CC0, 96 px at 10x",
    {"train": 262_144, "valid": 32_768, "test": 32_768},
)
# Numbers and terms: the archive's README and FAQ; Wang et al., CVPR 2017.
_CHESTXRAY14 = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
_NIH = "no restrictions on use, acknowledge the NIH Clinical Center and cite Wang et al. 2017"
CHESTXRAY14 = Published("ChestX-ray14", _CHESTXRAY14, _NIH, {"train": 86_524, "test": 25_596})
# The lists of https://github.com/arnoweng/CheXNet, whose first two PCRL released as its own.
CHESTXRAY14_CHEXNET = Published(
    "ChestX-ray14 in the split of CheXNet", _CHESTXRAY14, _NIH, {"train": 78_468, "val": 11_219, "test": 22_433}
)
# Numbers: train.csv and valid.csv of version 1.0. The test images are not among them.
CHEXPERT = Published(
    "CheXpert",
    "https://stanfordmlgroup.github.io/competitions/chexpert",
    "Stanford's research use agreement, no commercial use, no redistribution, cite Irvin et al. 2019",
    {"train": 223_414, "val": 234},
)
# Numbers and terms: the data set's page and Cordts et al., CVPR 2016. The validation images serve as the test.
CITYSCAPES = Published(
    "Cityscapes",
    "https://www.cityscapes-dataset.com",
    "on registration, not for commercial use, cite Cordts et al. 2016",
    {"train": 2975, "test": 500},
)
