"""What `experiments.foretell` is made of."""
