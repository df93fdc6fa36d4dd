"""The figures of the paper, the probe and comparisons: evidence, not product."""
