"""Keys of a configuration with defaults and checks, recipes, command-line flags."""
