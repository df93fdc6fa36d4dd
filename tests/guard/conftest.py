"""Runs under a guard, as tests of training make them."""

from tests.training.conftest import exact_runs, folder  # noqa: F401
