"""Gaussian data x_0 ~ N(M, TAU^2), where the exact velocity is affine and every answer is known."""

M, TAU = 0.6, 0.5


def velocity(x, s):
    s = s.reshape(s.shape + (1,) * (x.ndim - 1))
    variance = (1 - s) ** 2 * TAU**2 + s**2
    residual = x - (1 - s) * M
    return (s - (1 - s) * TAU**2) / variance * residual - M
