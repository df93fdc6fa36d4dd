"""Optima that are known exactly, in float64 NumPy."""

import numpy as np


def orthogonal_optimum(mean, text, omega: float) -> tuple[np.ndarray, float]:
    """The direction b [D] orthogonal to the text embedding e that maximises the mean of
    i . e_guided over pictures whose mean embedding is m, and that maximum:

        b* = (2 omega - 1) m_perp / (m . e)        sqrt((m . e)^2 + (2 omega - 1)^2 |m_perp|^2)

    So the direction learns the average picture.

    Args:
        mean: m [D], with m . e > 0. text: e [D], of unit length.
    """
    m, e = np.float64(mean), np.float64(text)
    along, scale = m @ e, 2 * omega - 1
    across = m - along * e
    return scale * across / along, float(np.sqrt(along**2 + scale**2 * (across @ across)))
