"""Stratified folds of whole groups: a function of the seed, whatever the version of scikit-learn."""

from __future__ import annotations

import numpy as np

from densepath.transfer.probe.metrics import Floats, Integers


def stratified_group_folds(labels: Integers, groups: Integers, count: int, seed: int) -> Integers:
    """(N,) the fold, from 0, in which each image is a test image; a fold may stay empty.

    Groups are taken in random order, those with the most uneven classes first. Each is put into the fold that leaves
    the shares of each class most equal among folds; of equally good ones, into the one with the fewest images.

    Args:
        labels, groups: (N,) the class and the group of each image.
        count: number of folds.
        seed: seed of the order.

    Source: StratifiedGroupKFold of scikit-learn 1.8 and later, with the same folds. Earlier ones shuffle the groups
        after their images were counted, so that their folds are not stratified.
    """
    _, classes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    names, members = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), len(totals)))  # images by group and class
    np.add.at(counts, (members, classes), 1)
    order = np.random.RandomState(seed % 2**32).permutation(len(names))
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    sums, folds = np.zeros((count, len(totals))), np.zeros(len(names), np.int64)
    for group in order:
        folds[group] = _best_fold(sums, totals, counts[group])
        sums[folds[group]] += counts[group]
    return folds[members]


def _best_fold(sums: Floats, totals: Integers, added: Floats) -> int:
    """The fold to which ``added`` (K,) images of a group are added; sums (F, K) by fold, totals (K,) of all."""
    best, least, fewest = 0, np.inf, np.inf
    for fold, images in enumerate(sums.sum(1)):
        proposed = sums.copy()
        proposed[fold] += added
        spread = (proposed / totals).std(axis=0).mean()
        if spread < least or (np.isclose(spread, least) and images < fewest):
            best, least, fewest = fold, spread, images
    return best
