"""Memory, time and cost of a run on machines that need not be present."""
