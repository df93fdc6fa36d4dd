"""Opening a run, and sampling with scoring: what all other rooms stand on."""
