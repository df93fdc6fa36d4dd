"""Test environment: eight fake CPU devices, exact f32 matmuls, no network."""

import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('OMP_THREAD_LIMIT', '1')

import jax  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
