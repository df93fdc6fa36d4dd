"""How the miniatures were made, and checks of this repository."""
