"""Before training: whether a reward can teach a model, and which credit is worth its price."""
