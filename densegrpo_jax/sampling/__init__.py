"""Opens a run, and samples with scoring: the base of all commands."""
