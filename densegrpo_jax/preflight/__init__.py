"""Before training: whether a reward can teach a model, and which credit is worth its price."""

COARSE = (3, 1)  # completions measured beside the full ones
