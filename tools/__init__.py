"""Tools that make the miniatures, and checks of this repository."""
