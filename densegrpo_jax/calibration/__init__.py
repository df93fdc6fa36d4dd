"""Calibration of the noise level of every transition, and its figure."""
