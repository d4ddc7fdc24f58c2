"""How far two groups of points in the plane are apart, as normal distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_REACH, _NODES = 8.0, 201  # standard deviations, and points along an axis of the integral
_LEAST = 1e-12  # of a variance, so that points on a line have a density

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution.

    Args:
        mean: (2,).
        covariance: (2, 2).
    """

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, points: Floats) -> Gaussian:
        """The one with the mean and the covariance of points (N, 2)."""
        return cls(points.mean(0), np.cov(points.T) + _LEAST * np.eye(2))

    def log_density(self, points: Floats) -> Floats:
        """(N,) at points (N, 2)."""
        whitened = np.linalg.solve(np.linalg.cholesky(self.covariance), (points - self.mean).T)
        return -0.5 * (whitened**2).sum(0) - np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(self.covariance)[1]


def bhattacharyya(a: Gaussian, b: Gaussian) -> float:
    """The Bhattacharyya distance: 1/8 d' S^-1 d + 1/2 ln(det S / sqrt(det A det B)), S = (A + B) / 2.

    Source: Bhattacharyya, 1943; DiRL, appendix, table 10.
    """
    between, mean = a.mean - b.mean, (a.covariance + b.covariance) / 2
    logs = [np.linalg.slogdet(each)[1] for each in (mean, a.covariance, b.covariance)]
    return float(between @ np.linalg.solve(mean, between) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2)


def jensen_shannon(a: Gaussian, b: Gaussian) -> float:
    """The Jensen-Shannon divergence in nats, from 0 to ln 2: that of both to their mixture, halved and summed.

    It has no closed form. Each of the two expectations is integrated over a grid of its own distribution.

    Source: Lin, 1991; DiRL, table 10, which does not say how it is computed.
    """
    return (_to_mixture(a, b) + _to_mixture(b, a)) / 2


def _to_mixture(own: Gaussian, other: Gaussian) -> float:
    """The expectation over ``own`` of ln(own / mixture)."""
    along = np.linspace(-_REACH, _REACH, _NODES)
    standard = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    weights = np.exp(-0.5 * (standard**2).sum(1))
    points = own.mean + standard @ np.linalg.cholesky(own.covariance).T
    mixture = np.logaddexp(own.log_density(points), other.log_density(points)) - np.log(2)
    return float((weights * (own.log_density(points) - mixture)).sum() / weights.sum())
