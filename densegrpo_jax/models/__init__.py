"""Networks in flax.linen, the pipelines made of them, adapters and weight tables. The only package that imports flax."""
