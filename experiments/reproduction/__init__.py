"""The figures of the paper: the runs they need, measurements, verdicts."""
