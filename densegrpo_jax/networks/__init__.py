"""Networks in Flax linen, each with its table of weight names."""
