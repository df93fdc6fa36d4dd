"""Calibration of the noise level of every step, and its figure."""
