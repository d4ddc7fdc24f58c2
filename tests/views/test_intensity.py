"""Changes of intensity and sharpness of images and volumes with any number of channels."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy import stats
from torchvision.transforms.v2 import functional as TF

from densepath.views.intensity import Gamma, GaussianBlur, GaussianNoise, IntensityJitter, Solarize, gaussian_blur
from densepath.views.random_streams import Draw, Stream

SHAPES = [(6, 1, 18, 20), (6, 2, 10, 12, 14)]


def draw_of(count: int, start: int = 0) -> Draw:
    return Draw(3, 1, torch.arange(start, start + count), torch.full((count,), 2))


@pytest.mark.parametrize("outside", ["nearest", "constant"])
@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_blur_of_volumes_equals_scipy(shape, outside):
    x, sigma = torch.rand(shape), torch.tensor([0.1, 0.5, 0.9, 1.2, 1.6, 2.0])
    for image, s, result in zip(x, sigma.tolist(), gaussian_blur(x, sigma, outside == "constant"), strict=True):
        deviations = (0, *[s] * (len(shape) - 2))
        expected = scipy.ndimage.gaussian_filter(image.double().numpy(), deviations, mode=outside, truncate=8 / s)
        np.testing.assert_allclose(result, expected, atol=3e-4)


def test_intensity_jitter_of_one_channel_equals_torchvisions_brightness_and_contrast():
    x, draw = torch.rand(40, 1, 12, 12), draw_of(40)
    result = IntensityJitter(0.7, 0.3, 0.6).apply(x.clone(), draw)
    numbers = draw(Stream.INTENSITY)
    orders = set()
    for image, made, (chance, bright, contrast, order) in zip(x, result, numbers.tolist(), strict=True):
        if chance < 0.7:
            steps = [(TF.adjust_brightness, 0.7 + 0.6 * bright), (TF.adjust_contrast, 0.4 + 1.2 * contrast)]
            orders.add(order < 0.5)
            for change, factor in steps if order < 0.5 else reversed(steps):
                image = change(image, factor)
        torch.testing.assert_close(made, image, atol=1e-5, rtol=1e-4)
    assert orders == {True, False}


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_noise_is_normal_and_has_the_deviation_that_was_drawn(shape):
    count = 30
    x = torch.full((count, *shape[1:]), 0.5)
    draw = draw_of(count)
    noise = GaussianNoise(1.0, (0.01, 0.05)).apply(x.clone(), draw) - x
    std = 0.01 + 0.04 * draw(Stream.NOISE)[:, 1]
    unit = (noise.flatten(1) / std.unsqueeze(1)).flatten()
    assert stats.kstest(unit.numpy(), "norm").pvalue > 1e-3
    rows = noise.flatten(1)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 6 / rows.shape[1] ** 0.5


@pytest.mark.parametrize(
    "operation", [GaussianNoise(0.6), IntensityJitter(0.6), Gamma(0.6), GaussianBlur(0.6, (0.5, 1.0))]
)
@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_what_happens_to_an_image_is_its_own_and_happens_as_often_as_asked(operation, shape):
    x = torch.rand(300, *shape[1:])
    together = operation.apply(x.clone(), draw_of(300))
    part = operation.apply(x[40:44].clone(), draw_of(4, start=40))
    torch.testing.assert_close(part, together[40:44], atol=1e-6, rtol=1e-5)
    changed = (together != x).flatten(1).any(1).float().mean().item()
    assert abs(changed - 0.6) < 0.1
    assert together.min() >= 0 and together.max() <= 1
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    other = operation.apply(x.clone(memory_format=layout), draw_of(300))
    torch.testing.assert_close(other, together, atol=1e-6, rtol=1e-5)


def test_gamma_is_a_power_and_solarize_inverts_the_bright_half():
    x, draw = torch.rand(50, 1, 4, 4), draw_of(50)
    power = torch.exp(np.log(0.5) + np.log(4.0) * draw(Stream.GAMMA)[:, 1])
    expected = x ** power.view(-1, 1, 1, 1)
    torch.testing.assert_close(Gamma(1.0, (0.5, 2.0)).apply(x.clone(), draw), expected)
    torch.testing.assert_close(Solarize(1.0).apply(x.clone(), draw), torch.where(x < 0.5, x, 1 - x))


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_blur_of_an_image_has_the_same_bits_in_any_batch(shape):
    x, sigma = torch.rand(shape), torch.tensor([0.13, 0.5, 0.97, 1.2, 1.61, 3.0])
    together = gaussian_blur(x, sigma)
    for row in range(len(x)):
        assert torch.equal(gaussian_blur(x[row : row + 1], sigma[row : row + 1]), together[row : row + 1])


def test_no_images_stay_no_images():
    empty = torch.zeros(0, 1, 8, 8)
    assert GaussianBlur(1.0).apply(empty, draw_of(0)).shape == empty.shape
