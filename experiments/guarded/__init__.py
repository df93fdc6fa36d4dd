"""What the guard changes, where a reward is hacked and where none is."""
