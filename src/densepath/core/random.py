"""Random numbers as a function of counters: computed from what they are for, without a generator's state.

A random number of a view depends only on (seed, epoch, image, view, stream), so the same image gets the same view for
any number of workers, batch size or number of processes, and any view can be drawn again later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.errors import UserError

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 2**13  # counters that a CPU processes at a time
_MIXED = 2**15  # numbers that are mixed at a time
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64: the step of SplitMix64
_MIXERS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))
_FEISTEL_ROUNDS = 6
_SHUFFLE_DOMAIN = 0x5F3759DF  # keeps the shuffle's numbers apart from those of the views
_BATCH = 1  # and those of a batch apart from an epoch's


def check_seed(seed: int) -> None:
    """Check that the user's number can be a seed, both here and for torch's generators.

    Raises:
        UserError: it cannot.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}; give a whole number from 0 to 2^63 - 1")


def _by_numpy(x: Tensor) -> bool:
    """Whether NumPy computes on the words of a tensor; torch.compile cannot translate its unsigned integers."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _multiply(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a 32 x 32 bit product (int64 arithmetic wraps, the bits are correct)."""
    product = a * multiplier
    return (product >> 32) & _LOW, product & _LOW


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Philox4x32-10, vectorized: four 32-bit words for each counter.

    Args:
        counter: four int64 tensors of one shape, holding 32-bit words.
        key: two 32-bit words.

    Returns:
        (..., 4) int64 with values in [0, 2**32).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    return (_philox_on_host if _by_numpy(counter[0]) else _philox)(counter, key)


def _philox(counter: Sequence[Tensor], key: tuple[int, int]) -> Tensor:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _philox_on_host(counter: Sequence[Tensor], key: tuple[int, int]) -> Tensor:
    """:func:`philox` on a CPU, some counters at a time: few, short operations that stay in its cache."""
    shape = torch.broadcast_shapes(*(each.shape for each in counter))
    out = torch.empty(*shape, 4, dtype=torch.int64)
    words = out.view(-1, 4).numpy().view(np.uint64)
    given = [each.broadcast_to(shape).reshape(-1).numpy().view(np.uint64) for each in counter]
    low, half = np.uint64(_LOW), np.uint64(32)
    first, second = (np.uint64(multiplier) for multiplier in _MULTIPLIERS)
    for start in range(0, len(words), _CHUNK):
        c0, c1, c2, c3 = (each[start : start + _CHUNK].copy() for each in given)
        product0, product1 = np.empty_like(c0), np.empty_like(c0)
        k0, k1 = key
        for _ in range(_ROUNDS):
            np.multiply(c0, first, out=product0)
            np.multiply(c2, second, out=product1)
            np.right_shift(product1, half, out=c0)
            c0 ^= c1
            c0 ^= np.uint64(k0)
            np.bitwise_and(product1, low, out=c1)
            np.right_shift(product0, half, out=c2)
            c2 ^= c3
            c2 ^= np.uint64(k1)
            np.bitwise_and(product0, low, out=c3)
            k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
        for column, each in enumerate((c0, c1, c2, c3)):
            words[start : start + _CHUNK, column] = each
    return out


def bits(seed: int, epoch: int, index: Tensor, view: int | Tensor, stream: int | Tensor) -> Tensor:
    """Four random 32-bit words per image and stream.

    Args:
        seed: the run's seed, any 64-bit integer.
        epoch: the epoch, or any other 32-bit counter of time.
        index: (B,) int64, the images' positions in their source, below 2**48.
        view: which view of the image, below 2**16; a tensor has one for each index.
        stream: number of the stream, one for each purpose, below 2**32; a stream has four numbers. A tensor is
            broadcast against ``index``.

    Returns:
        (B, 4) int64 with values in [0, 2**32); (..., 4) of the broadcast shape.
    """
    index, streams = torch.broadcast_tensors(index.to(torch.int64), torch.as_tensor(stream, device=index.device))
    counter = (
        index & _LOW,
        ((index >> 32) & 0xFFFF) | (view << 16),
        torch.full_like(index, epoch & _LOW),
        streams & _LOW,
    )
    return philox(counter, (seed & _LOW, (seed >> 32) & _LOW))


def uniform(seed: int, epoch: int, index: Tensor, view: int | Tensor, stream: int | Tensor) -> Tensor:
    """Four uniform numbers per image and stream. Arguments and shapes as for :func:`bits`.

    Returns:
        (B, 4) float32 in [0, 1), multiples of 2**-24.
    """
    return (bits(seed, epoch, index, view, stream) >> 8).to(torch.float32) * 2.0**-24


def split_mix(seed: Tensor, number: Tensor) -> Tensor:
    """Some outputs of SplitMix64, vectorized. For many numbers it is several times faster than :func:`bits`.

    Args:
        seed: int64, all 64 bits of which count.
        number: int64, which outputs of each seed, from 1; broadcast against ``seed``.

    Returns:
        int64 of the broadcast shape, all 64 bits of which are random.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    if _by_numpy(seed):
        return _split_mix_on_host(seed, number)
    state = number * _GOLDEN + seed
    for shift, factor in _MIXERS:
        state ^= (state >> shift).bitwise_and_(2 ** (64 - shift) - 1)
        if factor != 1:
            state *= factor
    return state


def _split_mix_on_host(seed: Tensor, number: Tensor) -> Tensor:
    """:func:`split_mix` on a CPU: NumPy has unsigned shifts, and multiplies twice as fast."""
    seeds, numbers = np.broadcast_arrays(seed.numpy().view(np.uint64), number.numpy().view(np.uint64))
    out = np.empty(seeds.shape, np.uint64)
    for state, own, counters in _chunks(out, seeds, numbers):
        np.multiply(counters, np.uint64(_GOLDEN % 2**64), out=state)
        state += own
        shifted = np.empty_like(state)
        for shift, factor in _MIXERS:
            np.right_shift(state, np.uint64(shift), out=shifted)
            state ^= shifted
            if factor != 1:
                state *= np.uint64(factor % 2**64)
    return torch.from_numpy(out.view(np.int64))


def _chunks(*arrays: npt.NDArray[np.uint64]) -> Iterator[tuple[npt.NDArray[np.uint64], ...]]:
    """Arrays of one shape, a part of their last axis at a time that stays in the processor's cache."""
    if arrays[0].size <= _MIXED:
        yield arrays
        return
    for row in np.ndindex(arrays[0].shape[:-1]):
        for start in range(0, arrays[0].shape[-1], _MIXED):
            yield tuple(each[(*row, slice(start, start + _MIXED))] for each in arrays)


def _feistel(value: Tensor, half: int, seed: int, epoch: int, part: Tensor | None = None) -> Tensor:
    """A keyed bijection of 0 .. 4**half - 1 (a balanced Feistel network with Philox as its round function).

    With ``part``, of the shape of ``value``, each part of a whole has its own.
    """
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    first = 0 if part is None else _FEISTEL_ROUNDS  # its streams
    for round_ in range(first, first + _FEISTEL_ROUNDS):
        counter = right if part is None else right | (part << half)
        mixed = bits(seed ^ (_SHUFFLE_DOMAIN << 32), epoch, counter, view=0, stream=round_)[..., 0]
        left, right = right, left ^ (mixed & mask)
    return (left << half) | right


def permute(position: Tensor, n: int, seed: int, epoch: int) -> Tensor:
    """Where each position of a shuffled epoch points to: a keyed permutation of 0 .. n - 1 in constant memory.

    Positions that the bijection maps to ``n`` or more are passed through it again ("cycle walking"), so it stays a
    bijection of 0 .. n - 1; its domain is less than four times ``n``.

    Args:
        position: int64 of any shape with values in [0, n).
        n: number of items, below 2**48.
        seed, epoch: the key; each epoch has its own order.

    Returns:
        int64 of the shape of ``position``.
    """
    half = _half(n)
    value = _feistel(position.to(torch.int64), half, seed, epoch)
    while bool((outside := value >= n).any()):
        value[outside] = _feistel(value[outside], half, seed, epoch)
    return value


def permute_blocks(position: Tensor, n: int, block: int, window: int, seed: int, epoch: int) -> Tensor:
    """Like :func:`permute`, but items that follow each other are read together: for disks and network drives.

    Blocks of ``block`` items in a row are permuted, then the items of each ``window`` blocks that follow each other.
    Fewer than ``block`` items of an epoch come at other places.

    Args:
        position, n, seed, epoch: as for :func:`permute`.
        block: items in a row.
        window: blocks whose items are mixed.

    Returns:
        int64 of the shape of ``position``.
    """
    blocks, most = -(-n // block), block * window
    total, half = blocks * block, _half(most)  # the last block may be partly beyond the items

    def moved(value: Tensor) -> Tensor:
        part = value // most
        count = (total - part * most).clamp(max=most)
        inner = _feistel(value % most, half, seed, epoch, part)
        while bool((outside := inner >= count).any()):
            inner[outside] = _feistel(inner[outside], half, seed, epoch, part[outside])
        return permute(part * window + inner // block, blocks, seed, epoch) * block + inner % block

    value = moved(position.to(torch.int64))
    while bool((outside := value >= n).any()):
        value[outside] = moved(value[outside])
    return value


def _half(n: int) -> int:
    """Half of the bits of a number below ``n``, rounded up."""
    return max(1, ((n - 1).bit_length() + 1) // 2)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The numbers 0 .. n - 1 in random order: for a batch, many times as fast as :func:`permute`.

    Args:
        n: their number.
        seed, epoch: the key, as for :func:`bits`.

    Returns:
        (n,) int64.
    """
    high, low = bits(seed ^ (_SHUFFLE_DOMAIN << 32), epoch, torch.arange(n), view=_BATCH, stream=0)[:, :2].unbind(1)
    return ((high << 31) | (low >> 1)).argsort(stable=True)


def ordered_by_seed(names: Iterable[str], seed: int) -> list[str]:
    """Names in a random order, in which the place of one relative to another depends on no other name."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest())
