"""Memory, time and cost of a run on machines that are not here."""
