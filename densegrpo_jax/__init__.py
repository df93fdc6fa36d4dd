"""DenseGRPO in JAX."""
