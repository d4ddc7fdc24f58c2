"""What is chosen on validation cases: the epoch, by a score, and the thresholds of the classes."""

from __future__ import annotations

import numpy as np

from densepath.transfer.probe.metrics import Floats, Integers, measure


def choose_thresholds(chances: Floats, labels: Integers) -> Floats:
    """For each class the threshold with the largest difference of sensitivity and false positive rate (Youden's J).

    It lies half-way between two probabilities of validation cases; of equally good ones it is the lowest. A class that
    all or none of the cases have keeps 1 / K. Of two classes whose probabilities sum to 1 the first has 1 less the
    threshold of the second, so that both mean one cut.

    Args:
        chances: (C, K) probabilities.
        labels: (C,) classes.

    Source: DSMIL chooses thresholds in this way, but on the test cases.
    """
    count = chances.shape[1]
    thresholds = np.full(count, 1 / count)
    for k in range(count):
        values, positive = chances[:, k], labels == k
        if positive.all() or not positive.any():
            continue
        known = np.unique(values)
        cuts = (known[1:] + known[:-1]) / 2
        above = values[:, None] > cuts
        # whole numbers: differences of means that are equal may differ by rounding
        gains = above[positive].sum(0) * (~positive).sum() - above[~positive].sum(0) * positive.sum()
        if len(gains) and gains.max() > 0:
            thresholds[k] = cuts[gains.argmax()]
    if count == 2 and np.allclose(chances.sum(1), 1):
        thresholds[0] = 1 - thresholds[1]
    return thresholds


def predict_classes(chances: Floats, thresholds: Floats) -> Integers:
    """(C,) the class whose probability exceeds its threshold by most.

    Of two classes whose probabilities and thresholds sum to 1 this is the second exactly where its probability exceeds
    its threshold.
    """
    return (chances - thresholds).argmax(1)


def macro_auc(chances: Floats, labels: Integers) -> float:
    """The mean over the classes of the area under the ROC curve, one against the rest; 0 if there is only one class."""
    alone = np.zeros(len(labels), np.int64)
    area = float(measure(np.ones((1, len(labels))), labels, chances, alone)["macro_auc"][0])
    return area if np.isfinite(area) else 0.0
