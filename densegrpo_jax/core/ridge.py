"""Ridge regression in float64, and how much of the variance a prediction explains."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

ROWS = 4096  # of the features in float64 at a time


def ridge(
    features: Float[np.ndarray, 'N F'], targets: Float[np.ndarray, 'N'], penalties: Sequence[float]
) -> tuple[Float[np.ndarray, 'P F'], Float[np.ndarray, 'P']]:
    """Weights w and intercepts b, one pair for each penalty, that minimise

        mean (y - b - w . x)^2 + penalty |w std(x)|^2

    over N rows: the penalty acts on standardised features, so units do not matter. A feature that
    does not vary gets 0.

    Args:
        penalties: P numbers, 0 or more.

    Returns:
        float64.
    """
    count, size = features.shape
    mean, y_mean = features.mean(0, dtype=np.float64), targets.mean(dtype=np.float64)
    gram, product = np.zeros((size, size)), np.zeros(size)
    for start in range(0, count, ROWS):
        x = features[start : start + ROWS].astype(np.float64) - mean
        gram += x.T @ x / count
        product += (targets[start : start + ROWS].astype(np.float64) - y_mean) @ x / count
    std = np.sqrt(np.diag(gram))
    varies = std > 1e-9 * np.maximum(np.abs(mean), 1e-30)
    scale = np.where(varies, std, 1)
    values, vectors = np.linalg.eigh(
        np.where(varies[:, None] & varies, gram / scale[:, None] / scale, 0)
    )
    along = vectors.T @ np.where(varies, product / scale, 0)
    # directions in which nothing varies have rounding for an eigenvalue
    usable = values > 1e-10 * max(values.max(initial=0), 1e-30)
    weights = np.stack(
        [vectors @ np.where(usable, along / np.where(usable, values + p, 1), 0) for p in penalties]
    )
    weights = np.where(varies, weights / scale, 0)
    return weights, y_mean - weights @ mean


def explained(
    targets: Float[np.ndarray, 'N'],
    predicted: Float[np.ndarray, 'N'],
    groups: Int[np.ndarray, 'N'] | None = None,
) -> float:
    """R^2: 1 - the squared errors over the squared deviations from the mean; with groups (0, 1,
    ...), errors and targets are taken from their means within each. NaN if the targets do not vary.
    """
    groups = np.zeros(len(targets), int) if groups is None else groups
    counts = np.maximum(np.bincount(groups), 1)

    def squares(values):
        values = values.astype(np.float64)
        means = np.bincount(groups, values) / counts
        return np.sum((values - means[groups]) ** 2)

    error, total = squares(targets - predicted), squares(targets)
    return float(1 - error / total) if total > 0 else float('nan')
