"""The training loop, in reading order in run.py, and its learning half: credit and update."""
