"""Networks in flax.linen, adapters, weight tables. The only package that imports flax."""
