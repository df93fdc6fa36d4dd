"""The training loop, in reading order in run.py, and what learns: credit and update."""
