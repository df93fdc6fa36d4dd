"""The figures of the paper, the probe and comparisons: evidence, not part of the product."""
