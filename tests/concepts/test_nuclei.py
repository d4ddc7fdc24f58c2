"""Nuclei of synthetic tissue at known positions."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage.color import hed2rgb
from skimage.draw import disk

from densepath.annotations.label_cache import label_images
from densepath.concepts.nuclei import Nuclei
from densepath.core.errors import UserError
from densepath.sources.open import open_images


def draw(places: list[tuple[int, int]], size: int = 200, radius: float = 8, zoom: int = 1) -> np.ndarray:
    """Blue discs (haematoxylin) on pink (eosin), with some noise."""
    stains = np.zeros((size * zoom, size * zoom, 3))
    stains[..., 1] = 0.12
    for row, column in places:
        rows, columns = disk((row * zoom, column * zoom), radius * zoom, shape=stains.shape[:2])
        stains[rows, columns, 0] = 0.15
    stains += np.random.default_rng(0).normal(0, 0.004, stains.shape)
    return (hed2rgb(np.clip(stains, 0, None)) * 255).round().astype(np.uint8)


def test_close_nuclei_form_a_group_and_others_do_not():
    pair, single = [(50, 40), (50, 64)], (50, 120)  # 8 px between the borders of the pair
    labels = Nuclei().label(draw([*pair, single]), "")
    assert labels[50, 40] == labels[50, 64] == labels[50, 52] != labels[50, 120]
    assert labels[50, 90] == labels[150, 150] not in (labels[50, 40], labels[50, 120])
    assert len(np.unique(labels)) == 3


def test_the_inside_of_a_ring_of_nuclei_differs_from_the_outside():
    """Like the lumen of a gland and the stroma."""
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    labels = Nuclei().label(draw([(round(100 + 60 * np.sin(a)), round(100 + 60 * np.cos(a))) for a in angles]), "")
    assert len({labels[100, 100], labels[100, 160], labels[5, 5]}) == len(np.unique(labels)) == 3


def test_the_radius_scales_with_the_image():
    places = [(50, 40), (50, 64), (50, 120), (140, 60)]
    fine, coarse = Nuclei(16).label(draw(places, zoom=2), ""), Nuclei(8).label(draw(places), "")
    assert (fine[::2, ::2] == coarse).mean() > 0.97
    assert Nuclei(16).identity() != Nuclei(8).identity()
    assert json.dumps(Nuclei(8).identity()) == json.dumps(Nuclei(8.0).identity())


def test_specks_are_not_nuclei():
    labels = Nuclei().label(draw([(50, 50)]), "")
    specks = draw([(150, c) for c in range(20, 180, 20)], radius=1.5)
    with_specks = np.minimum(draw([(50, 50)]), specks)
    assert np.array_equal(Nuclei().label(with_specks, ""), labels)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_image_is_one_concept(value):
    assert np.ptp(Nuclei().label(np.full((40, 50, 3), value, np.uint8), "")) == 0


def test_grey_images_are_refused(tmp_path):
    Image.new("L", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="nuclei are found by color, and the images are grey"):
        label_images(open_images(tmp_path), Nuclei(), tmp_path / "cache")
