"""Changes of color and sharpness against torchvision, kornia, scikit-image and scipy."""

import math
from typing import Any

import kornia
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import torch
from torchvision.transforms.v2 import functional as TF

from densepath.core.errors import UserError
from densepath.views import color, intensity
from densepath.views.augment import Augment
from densepath.views.elastic import Elastic
from densepath.views.random_streams import Draw, Stream


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 24, 20)
    x[0, :, :4] = 0.5  # greys have no hue
    return x


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (color.adjust_brightness, TF.adjust_brightness, (0.6, 1.0, 1.4, 0.0)),
        (color.adjust_contrast, TF.adjust_contrast, (0.6, 1.0, 1.4, 0.0)),
        (color.adjust_saturation, TF.adjust_saturation, (0.6, 1.0, 1.4, 0.0)),
        (color.adjust_hue, TF.adjust_hue, (-0.1, 0.0, 0.1, 0.5)),
    ],
)
def test_color_equals_torchvision(images, ours, theirs, factors):
    result = ours(images, torch.tensor(factors))
    for image, factor, expected in zip(images, factors, result, strict=True):
        # torchvision rounds the weight of red to 0.2989.
        torch.testing.assert_close(expected, theirs(image, factor), atol=1e-4, rtol=1e-4)


def test_hue_equals_kornia(images):
    shift = torch.tensor([-0.1, 0.05, 0.1, 0.3])
    theirs = kornia.enhance.adjust_hue(images, shift * 2 * torch.pi)
    torch.testing.assert_close(color.adjust_hue(images, shift), theirs, atol=1e-4, rtol=1e-4)


def test_grey_and_solarize_equal_torchvision(images):
    torch.testing.assert_close(color.luma(images), TF.rgb_to_grayscale(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(intensity.solarize(images), TF.solarize(images, 0.5))


def test_blur_equals_scipy_with_continued_edges(images):
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0])
    blurred = intensity.gaussian_blur(images, sigma)
    for image, s, result in zip(images, sigma.tolist(), blurred, strict=True):
        expected = scipy.ndimage.gaussian_filter(image.double().numpy(), (0, s, s), mode="nearest", truncate=8 / s)
        np.testing.assert_allclose(result, expected, atol=2e-4)


def test_blur_equals_kornia(images):
    sigma = torch.tensor([0.7, 1.0, 1.3, 2.0])
    expected = kornia.filters.gaussian_blur2d(images, 17, sigma[:, None].expand(-1, 2), border_type="replicate")
    torch.testing.assert_close(intensity.gaussian_blur(images, sigma), expected, atol=2e-4, rtol=1e-3)


def test_stain_jitter_changes_the_amounts_that_scikit_image_sees(images):
    images = images.clamp(min=0.05)
    factors, shifts = torch.tensor([[1.05, 0.9, 1.0]]).expand(4, -1), torch.tensor([[0.02, 0.05, 0.0]]).expand(4, -1)
    stained = color.jitter_stain(images, factors, shifts)
    # scikit-image's separation of the same stains, written out: it clips amounts at zero and has its own units.
    stains = np.array(skimage.color.rgb_from_hed)
    np.testing.assert_allclose(color._STAINS, stains, atol=1e-6)
    stains = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    density = -np.log(images.double().permute(0, 2, 3, 1).numpy())
    amounts = density @ np.linalg.inv(stains) * factors[0].double().numpy() + shifts[0].double().numpy()
    expected = np.clip(np.exp(-amounts @ stains), 0, 1)
    np.testing.assert_allclose(stained.permute(0, 2, 3, 1), expected, atol=1e-4)


def test_stain_jitter_of_nothing_is_nothing(images):
    images = images.clamp(min=0.05)
    same = color.jitter_stain(images, torch.ones(4, 3), torch.zeros(4, 3))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=1e-4)


def test_channels_last_gives_the_same(images):
    draw = numbers(4)
    everything = Augment(jitter=0.8, grayscale=0.3, blur=0.6, solarize=0.3, stain=0.6)
    plain = apply(everything, images.clone(), draw)
    last = apply(everything, images.clone(memory_format=torch.channels_last), draw)
    torch.testing.assert_close(last, plain)


def numbers(count: int) -> Draw:
    return Draw(0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def apply(augment: Augment, x: torch.Tensor, draw: Draw) -> torch.Tensor:
    for operation in augment.random_view().appearance:
        x = operation.apply(x, draw)
    return x


def test_color_jitter_applies_each_images_own_order():
    """Against torchvision's functions, one image after another."""
    torch.manual_seed(1)
    images = torch.rand(24, 3, 12, 12)
    draw = numbers(24)
    augment = Augment(jitter=0.7, grayscale=0, blur=0, hue=0.2)
    result = apply(augment, images.clone(), draw)
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    orders = set()
    for i, image in enumerate(images):
        if draw(Stream.JITTER)[i, 0] < 0.7:
            share = draw(Stream.JITTER_FACTORS)[i]
            factors = [0.6 + 0.8 * float(share[k]) for k in range(3)] + [-0.2 + 0.4 * float(share[3])]
            order = draw(Stream.JITTER_ORDER)[i].argsort().tolist()
            orders.add(tuple(order))
            for k in order:
                image = functions[k](image, factors[k])
        torch.testing.assert_close(result[i], image, atol=2e-4, rtol=1e-3)
    assert len(orders) > 5


@pytest.mark.parametrize(("name", "share"), [("grayscale", 0.2), ("solarize", 0.3), ("blur", 0.5), ("stain", 0.4)])
def test_probabilities(name, share):
    nothing = dict.fromkeys(("jitter", "grayscale", "blur", "solarize", "stain"), 0.0)
    augment = Augment(**{**nothing, name: share}, blur_sigma=(1.0, 2.0))
    images = torch.rand(2000, 3, 4, 4)
    changed = (apply(augment, images.clone(), numbers(2000)) != images).flatten(1).any(1)
    assert abs(changed.float().mean().item() - share) < 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": math.nan}, "rotation must be at least 0 and finite, not nan"),
        ({"brightness": math.inf}, "brightness must be at least 0 and finite, not inf"),
        ({"noise_std": (0.0, math.inf)}, "noise_std must be two numbers from 0, the smaller first, not 0.0, inf"),
        ({"ratio": (1.0, math.inf)}, "ratio must be two positive numbers"),
        ({"gamma_power": (math.nan, 1.0)}, "gamma_power must be two positive numbers"),
        ({"scale": (0.2,)}, "scale must be two positive numbers, the smaller first, not 0.2"),
        ({"noise_std": 0.1}, "noise_std must be two numbers from 0, the smaller first, not 0.1"),
        ({"blur_sigma": (0.1, 1e9)}, "blur_sigma is in pixels of the view: at most 100"),
    ],
)
def test_options_without_a_finite_meaning_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=rf"augment\.{message}"):
        Augment(**options)


@pytest.mark.parametrize("values", [{"sigma": math.inf}, {"displacement": math.inf}])
def test_an_elastic_deformation_is_a_share_of_the_view(values: dict[str, float]):
    with pytest.raises(UserError, match="needs shares of the view"):
        Elastic(**values)
