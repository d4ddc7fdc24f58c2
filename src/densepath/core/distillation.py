"""Self-distillation of DINO: the loss between a teacher's and a student's distributions over prototypes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.core.distributed import mean, total
from densepath.core.errors import UserError
from densepath.core.losses import full_precision
from densepath.core.sinkhorn import sinkhorn

Centering = Literal["mean", "sinkhorn"]

# Scores that exist at a time: a matrix of all of them would be the largest tensor of a step by far.
_CPU_SCORES, _GPU_SCORES = 2**24, 2**26


@dataclass(frozen=True, eq=False)
class Targets:
    """A teacher's distributions over prototypes, computed for the rows that are asked for.

    Args:
        queries: (T, D) the teacher's vectors, in the precision of its products of matrices.
        keys: (K, D) its prototypes, in the same.
        center: (K,).
        temperature: of the softmax.
    """

    queries: Tensor
    keys: Tensor
    center: Tensor
    temperature: float

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, rows: slice) -> Tensor:
        """The distributions (n, K) of n rows."""
        return self.logs(self.queries[rows]).exp_()

    def logs(self, queries: Tensor) -> Tensor:
        """The logarithms (n, K) of the distributions of vectors (n, D)."""
        scores = full_precision(queries @ self.keys.T)
        return scores.sub_(self.center).div_(self.temperature).log_softmax(1)


class Distillation(nn.Module):
    """The loss of DINO, with its center, or with Sinkhorn-Knopp instead of one.

    The teacher's distribution of a row is p = softmax((t - c) / temperature), with scores t for each prototype and the
    center c; the student's is softmax(s / student_temperature). The loss is the cross-entropy of pairs of rows. After
    each step c becomes m c + (1 - m) (mean of the scores t of the step, over all batches and processes). With
    "sinkhorn", p comes from :func:`sinkhorn` on the scores of a batch of all processes, and there is no center: batches
    that are accumulated are balanced one by one. Without a center, all scores of the teacher are in memory at once, a
    few times; with one, only parts of them are.

    Args:
        prototypes: number K of prototypes.
        student_temperature: temperature of the student.
        center_momentum: momentum m of the center.
        centering: "mean" or "sinkhorn".

    Source: Caron et al., DINO, ICCV 2021, section 3.1; Oquab et al., DINOv2, TMLR 2024, section 4.
    """

    center: Tensor

    def __init__(
        self,
        prototypes: int,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        centering: Centering = "mean",
    ) -> None:
        super().__init__()
        if centering not in ("mean", "sinkhorn"):
            raise UserError(f"unknown centering {centering!r}; there are: mean, sinkhorn")
        if not student_temperature > 0:
            raise UserError(f"the student temperature must be positive, not {student_temperature}")
        if not 0 <= center_momentum < 1:
            raise UserError(f"the momentum of the center must be at least 0 and less than 1, not {center_momentum}")
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.centering = centering
        self.register_buffer("center", torch.zeros(prototypes))
        self._pending: list[Tensor] = []  # of the current step: sums of scores, and their number

    @torch.no_grad()
    def targets(
        self,
        vectors: Tensor,
        prototypes: Tensor,
        temperature: float,
        valid: Tensor | None = None,
        used: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor | Targets, dict[str, Tensor]]:
        """The teacher's distributions; their scores, products with the prototypes, enter the center after the step.

        Args:
            vectors: (N, D) the teacher's.
            prototypes: (K, D) the teacher's.
            temperature: the teacher's temperature.
            valid: (N,) bool: the rows that exist; all by default. The others do not enter the center.
            used: (T,) the rows whose distributions are needed, and (T,) bool: which of them count in the statistics;
                by default all rows, and those that exist.

        Returns:
            (T, K) distributions, computed when they are used if they are many; and statistics of them as shares of
            ln K: their mean "entropy", and "kl_uniform", the divergence of their mean from the uniform distribution.
            One minus both is what they tell of the image. Both are 0 for fewer than two rows, which do not tell.
        """
        narrow = (vectors[:1] @ prototypes[:1].T).dtype  # that of autocast
        with torch.autocast(vectors.device.type, enabled=False):
            vectors, prototypes = full_precision(vectors), full_precision(prototypes)
            weight = vectors.new_ones(len(vectors)) if valid is None else valid.to(vectors.dtype)
            queries, keys = vectors.to(narrow), prototypes.to(narrow)
            rows, counted = (slice(None), weight) if used is None else (used[0], used[1].to(weight.dtype))
            logs: Iterator[Tensor]
            if self.centering == "sinkhorn":
                size = max(1, len(counted))
                logs = iter([sinkhorn(full_precision(queries @ keys.T) / temperature, valid)[rows]])
            else:
                size = _rows_at_a_time(keys)
                # The sum of the scores, without the scores.
                self._pending.append(torch.cat((prototypes @ (weight @ vectors), weight.sum().view(1))))
                lazy = Targets(queries[rows], keys, self.center.to(weight.dtype), temperature)
                logs = map(lazy.logs, lazy.queries.split(size))
            average, entropy = weight.new_zeros(len(keys)), weight.new_zeros(())
            several = counted.sum() > 1  # a single row says nothing of what rows have in common
            share, most = counted / counted.sum().clamp(min=1), math.log(max(len(keys), 2))
            for part, log in zip(share.split(size), logs, strict=True):
                targets = log.exp()
                average += part @ targets
                entropy -= part @ log.mul_(targets).sum(1)
            divergence = several * (most + torch.xlogy(average, average).sum())
            statistics = {"entropy": several * entropy / most, "kl_uniform": divergence / most}
            return targets if len(counted) <= size else lazy, statistics

    def forward(
        self, students: Tensor, prototypes: Tensor, targets: Tensor | Targets, rows: Tensor, weights: Tensor
    ) -> Tensor:
        """The sum of the weighted cross-entropies of pairs of rows: see :func:`soft_cross_entropy`."""
        return soft_cross_entropy(students, prototypes, targets, rows, weights, self.student_temperature)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the center to the mean of the step's scores; it stays if the step had none."""
        if not self._pending:
            return
        summed = total(torch.stack(self._pending).sum(0))
        self._pending.clear()
        center = summed[:-1] / summed[-1].clamp(min=1)
        moved = torch.lerp(center, self.center.to(center.dtype), self.center_momentum)
        self.center.copy_(torch.where(summed[-1] > 0, moved, self.center))


def deviation(vectors: Tensor, valid: Tensor | None = None) -> Tensor:
    """The standard deviation of unit vectors over rows (N, C), times sqrt(C): 1 if they have all directions.

    It is 1 also if fewer than two rows are valid (N,), which do not tell.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(full_precision(vectors), dim=1)
        weight = unit.new_ones(len(unit)) if valid is None else valid.to(unit.dtype)
        count, weight = weight.sum(), weight / weight.sum().clamp(min=1)
        found = math.sqrt(unit.shape[1]) * (weight @ (unit - weight @ unit).square()).mean().sqrt()
        return torch.where(count > 1, found, 1.0)


def view_pairs(
    images: int,
    teachers: int,
    students: int,
    device: torch.device,
    taught: Tensor | None = None,
    learned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The pairs of each student view with the teacher views of the same image, except with itself.

    The first student views are the teacher's. Row k * images + b is view k of image b. Weights are those of one batch:
    if pairs are left out, the mean of the losses of several accumulated batches is not the loss of all of them, as each
    counts equally, whatever its number of pairs.

    Args:
        images: number of images B.
        teachers, students: number of the teacher's and the student's views, Q and V.
        device: device of the result.
        taught, learned: (Q * B,) and (V * B,) bool: the views that have a vector; all by default. Pairs without both
            are left out, and the weights are those of a mean over the others.

    Returns:
        (V * B, Q) int64, the teacher's rows, and (V * B, Q) weights that sum to 1; with several processes, the average
        of their sums is 1.
    """
    rows = torch.arange(teachers * images, device=device).view(teachers, images)
    pairs = rows.T.expand(students, images, teachers)
    other = ~torch.eye(students, teachers, dtype=torch.bool, device=device)
    kept = other.unsqueeze(1).expand_as(pairs)
    if taught is not None:
        kept = kept & taught[pairs]
    if learned is not None:
        kept = kept & learned.view(students, images, 1)
    weights = kept.flatten(0, 1).float()
    return pairs.flatten(0, 1), weights / mean(weights.sum()).clamp(min=1e-6)


def soft_cross_entropy(
    students: Tensor,
    prototypes: Tensor,
    targets: Tensor | Targets,
    rows: Tensor,
    weights: Tensor,
    temperature: float,
) -> Tensor:
    """The sum over n and q of  weights[n, q] * CE(targets[rows[n, q]], softmax(students[n] prototypes / temperature)).

    The scores of the students, (N, K), never exist all at once: their gradient is computed with them, part by part.

    Args:
        students: (N, D).
        prototypes: (K, D).
        targets: (T, K) distributions, without gradient.
        rows: (N, Q) int64, rows of ``targets``.
        weights: (N, Q) floats; a pair of weight 0 does not count.
        temperature: of the softmax.

    Returns:
        A scalar; under autocast, the products of matrices have its precision and the rest has float32.
    """
    loss: Tensor = _SoftCrossEntropy.apply(students, prototypes, targets, rows, weights, temperature)
    return loss


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        students: Tensor,
        prototypes: Tensor,
        targets: Tensor | Targets,
        rows: Tensor,
        weights: Tensor,
        temperature: float,
    ) -> Tensor:
        device, wide = students.device.type, torch.promote_types(students.dtype, torch.float32)
        narrow = (students[:1] @ prototypes[:1].T).dtype  # that of autocast
        ctx.dtypes = students.dtype, prototypes.dtype
        learns = ctx.needs_input_grad[1]
        with torch.autocast(device, enabled=False):
            scaled, keys, weights = students.to(wide) / temperature, prototypes.to(narrow), weights.to(wide)
            count, shares = len(targets), weights.sum(1, keepdim=True)
            # A target meets the weighted sum of its students, so that no targets are mixed for each of these.
            pairs = (weights.unsqueeze(2) * scaled.unsqueeze(1)).flatten(0, 1)
            pulls = scaled.new_zeros(count, scaled.shape[1]).index_add_(0, rows.flatten(), pairs)
            partners = torch.cat((-pulls, shares * scaled))
            means, loss = torch.empty_like(partners), scaled.new_zeros(())
            of_prototypes: Tensor | None = None
            size = _rows_at_a_time(keys)
            for start in range(0, len(partners), size):  # targets first, then students
                here, parts = slice(start, start + size), []
                if start < count:
                    parts.append(targets[start : min(here.stop, count)].to(narrow))
                if here.stop > count:
                    mine = slice(max(start - count, 0), here.stop - count)
                    scores = (scaled[mine].to(narrow) @ keys.T).to(wide)
                    most, at = scores.max(1, keepdim=True)
                    scores = scores.softmax(1)
                    loss += (shares[mine] * (most - scores.gather(1, at).log())).sum()  # their log-sum-exp
                    parts.append(scores.to(narrow))
                part = parts[0] if len(parts) == 1 else torch.cat(parts)
                means[here] = (part @ keys).to(wide)
                if learns:
                    product = part.T @ partners[here].to(narrow)
                    of_prototypes = product.to(wide) if of_prototypes is None else of_prototypes.add_(product)
            loss -= (pulls * means[:count]).sum()
            of_students = (shares * means[count:] - (weights.unsqueeze(2) * means[rows]).sum(1)) / temperature
        ctx.save_for_backward(of_students, of_prototypes)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (scale,) = gradients
        if scale.device.type == "cpu" and scale == 1:  # read it: the product would be a pass over all prototypes
            products = ctx.saved_tensors
        else:
            products = [None if saved is None else saved * scale for saved in ctx.saved_tensors]
        found = (p if p is None else p.to(dtype) for p, dtype in zip(products, ctx.dtypes, strict=True))
        return *found, None, None, None, None


def _rows_at_a_time(keys: Tensor) -> int:
    return max(1, (_CPU_SCORES if keys.device.type == "cpu" else _GPU_SCORES) // len(keys))
