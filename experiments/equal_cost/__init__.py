"""Every method with its own learning rate and the same budget, in one table."""
