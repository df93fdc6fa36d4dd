"""The oracles of this folder get the same inputs on every CPU."""

from tests.oracles import same_inputs  # noqa: F401 (a fixture for every test here)
