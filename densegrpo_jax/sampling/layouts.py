"""Layouts of an export, as --layout names them; imports nothing, as flags are defined first."""

MERGED = 'merged'
LAYOUTS = ('peft', 'kohya', MERGED)
