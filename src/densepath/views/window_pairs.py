"""Pairs of windows whose intersection over union exceeds a threshold, in closed form.

Two windows of sides a and b, m = min(a, b) along each axis, overlap by o along each. IoU > t says prod(o / m) > c with
c = t / (1 + t) * (V_a + V_b) / prod(m): the sum of x = -ln(o / m) is below L = -ln c. Along an axis, one window lies
within the other (x = 0, over a length |a - b|), or they slide past each other (o from m to 0, on two sides). So the
displacements with IoU > t have the measure

    sum over the sets S of axes that slide:  prod_S 2 m * prod_not_S |a - b| * P(Gamma(|S|) < L),

and are drawn by choosing S, then the sum of x from Gamma(|S|) below L, split uniformly among the axes of S.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from densepath.core.affine import from_box
from densepath.views.crops import WindowPair
from densepath.views.random_streams import Draw, Stream

ATTEMPTS = 8
_STREAMS = 4  # random streams of an attempt
_HALVINGS = 48  # bisection steps for a quantile
_NARROW = 0.75  # axes along which windows have less room than this share of the shorter side are drawn uniformly


def window_pairs(pair: WindowPair, sizes: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """The maps (N, d, d + 1) of two windows of each image.

    Their distribution is that of rejection sampling: both windows uniform, redrawn until their IoU is large enough. If
    eight proposals are rejected (less than one pair in a hundred), the windows get a common center.

    Args:
        pair: the sizes of the windows and their minimum IoU.
        sizes: (N, d) int64, the sizes of the images in pixels, in the order of the tensor's axes.
        draw: the random numbers of the N rows.
    """
    d = sizes.shape[1]
    images = sizes.flip(-1).double()  # x first
    windows = torch.tensor(pair.windows, dtype=torch.float64).flip(-1)
    if pair.equal:
        first, second = windows, windows
    else:
        first, second = (torch.stack(each) for each in zip(*itertools.product(windows, windows), strict=True))
    largest = torch.minimum(windows.amax(0), images)
    border = torch.tensor([0.0] * d if not pair.border else list(reversed(pair.border)), dtype=torch.float64)
    border = torch.minimum(border, (images - largest) / 2)
    low_a, low_b, a, b = place_pairs(first, second, pair.iou, images - 2 * border, draw)
    maps = []
    for low, sides in ((low_a + border, a), (low_b + border, b)):
        maps.append(from_box(2 * low / images - 1, 2 * (low + sides) / images - 1).float())
    return maps[0], maps[1]


def place_pairs(
    first: Tensor, second: Tensor, iou: float, room: Tensor, draw: Draw
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw sizes and positions of two windows in each of N boxes.

    Args:
        first, second: (G, d) float64, the sizes that pairs may have, tried with equal probability; cut to the boxes.
        iou: lower bound of the windows' IoU.
        room: (N, d) the sides of the boxes.
        draw: the random numbers of the N rows.

    Returns:
        The low corners and the sides of both, each (N, d) float64.
    """
    d = room.shape[1]
    numbers = torch.stack([draw(Stream.WINDOWS + stream) for stream in range(ATTEMPTS * _STREAMS)], dim=1).double()
    numbers = numbers.view(len(room), ATTEMPTS, -1)
    which, which_set, gamma, accept = numbers[..., :4].unbind(-1)  # (N, T) each
    parts, sides, shifts = numbers[..., 4 : 4 + 3 * d].unflatten(-1, (3, d)).unbind(-2)  # (N, T, d) each
    room = room.unsqueeze(1)

    a, b = torch.minimum(first, room), torch.minimum(second, room)  # (N, G, d)
    wide = _wide(a, b, room)
    larger_room = (room - torch.minimum(a, b)).clamp(min=1e-9)
    weights = _set_weights(a, b, wide, _limit(a, b, iou)).sum(-1) / torch.where(wide, larger_room, 1.0).prod(-1)
    chosen = _categorical(weights.unsqueeze(1), which).unsqueeze(-1).expand(-1, -1, d)
    a, b, wide = a.gather(1, chosen), b.gather(1, chosen), wide.gather(1, chosen)  # (N, T, d)
    room_a, room_b, limit = room - a, room - b, _limit(a, b, iou)

    # Along narrow axes both windows are uniform. The overlap lost there reduces what the other axes may lose.
    low_a, offset = sides * room_a, shifts * room_b - sides * room_a
    overlap = torch.minimum(a, offset + b) - offset.clamp(min=0)
    lost = torch.where(wide, 0.0, -torch.log((overlap / torch.minimum(a, b)).clamp(min=1e-300)))
    left = limit - lost.sum(-1)
    weights = _set_weights(a, b, wide, left)
    accepted = weights.sum(-1) / _set_weights(a, b, wide, limit).sum(-1)

    slide = _sets(d)[_categorical(weights, which_set)]  # (N, T, d)
    offset = torch.where(wide, _offset(a, b, slide, left, gamma, parts, sides), offset)
    # The share of the positions of the pair that lie inside the image.
    lowest, highest = (-offset).clamp(min=0), torch.minimum(room_a, room_b - offset)
    share = (highest - lowest).clamp(min=0) / torch.minimum(room_a, room_b).clamp(min=1e-9)
    good = accept < accepted * torch.where(wide, share, 1.0).prod(-1)
    low_a = torch.where(wide, lowest + shifts * (highest - lowest), low_a)

    attempt = torch.where(good.any(1), good.to(torch.int64).argmax(1), ATTEMPTS - 1)
    rows = torch.arange(len(numbers))
    a, b, low_a, offset, shifts = (each[rows, attempt] for each in (a, b, low_a, offset, shifts))
    failed = ~good.any(1, keepdim=True)
    larger = torch.maximum(a, b)
    low_a = torch.where(failed, shifts * (room.squeeze(1) - larger) + (larger - a) / 2, low_a)
    offset = torch.where(failed, (a - b) / 2, offset)
    return low_a, low_a + offset, a, b


def _limit(a: Tensor, b: Tensor, iou: float) -> Tensor:
    """L for windows of sides (..., d); not positive if no displacement has the IoU."""
    common = torch.minimum(a, b).prod(-1)
    return -torch.log(iou / (1 + iou) * (a.prod(-1) + b.prod(-1)) / common) if iou else torch.full_like(common, 700.0)


def _wide(a: Tensor, b: Tensor, room: Tensor) -> Tensor:
    """Whether windows of sides (..., d) have much room to slide past each other, along each axis."""
    return room - torch.maximum(a, b) > _NARROW * torch.minimum(a, b)


def _sets(d: int) -> Tensor:
    """(2**d, d) bool: the sets of axes along which windows may slide past each other."""
    return torch.tensor(list(itertools.product((False, True), repeat=d)))


def _set_weights(a: Tensor, b: Tensor, wide: Tensor, limit: Tensor) -> Tensor:
    """(..., 2**d) the measure of displacements along the wide axes that belong to each set of sliding axes."""
    sets = _sets(a.shape[-1])
    slides, within = 2 * torch.minimum(a, b), (a - b).abs()
    lengths = torch.where(sets, slides.unsqueeze(-2), torch.where(wide, within, 1.0).unsqueeze(-2))
    possible = ~(sets & ~wide.unsqueeze(-2)).any(-1)
    limit = limit.clamp(min=0).unsqueeze(-1)
    chance = torch.where(sets.any(-1), _gamma_cdf(sets.sum(-1), limit), (limit > 0).double())
    return lengths.prod(-1) * possible * chance


def _gamma_cdf(shape: Tensor, x: Tensor) -> Tensor:
    """P(Gamma(shape) < x) for shapes 1, 2 and 3."""
    series = 1 + torch.where(shape > 1, x, 0.0) + torch.where(shape > 2, x * x / 2, 0.0)
    return 1 - torch.exp(-x) * series


def _offset(a: Tensor, b: Tensor, slide: Tensor, limit: Tensor, gamma: Tensor, parts: Tensor, sides: Tensor) -> Tensor:
    """How far b's low corner lies from a's, (N, T, d), where windows slide along the axes ``slide``."""
    count = slide.sum(-1)
    low, high = torch.zeros_like(limit), limit.clamp(min=0)
    goal = gamma * _gamma_cdf(count, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = _gamma_cdf(count, middle) < goal
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    shares = torch.where(slide, -torch.log1p(-parts), 0.0)  # even on the simplex
    x = high.unsqueeze(-1) * shares / shares.sum(-1, keepdim=True).clamp(min=1e-300)
    distance = (a + b) / 2 - torch.minimum(a, b) * torch.exp(-x)  # of the centers
    sliding = torch.where(sides < 0.5, -distance, distance)
    return torch.where(slide, sliding, (sides - 0.5) * (a - b).abs()) + (a - b) / 2


def _categorical(weights: Tensor, number: Tensor) -> Tensor:
    """Indices into the last axis of weights (..., 1 or T, K), in proportion to them, by uniform numbers (..., T)."""
    edges = weights.cumsum(-1)
    edges, goal = torch.broadcast_tensors(edges, (number * edges[..., -1]).unsqueeze(-1))
    return (edges <= goal).sum(-1).clamp(max=weights.shape[-1] - 1)
