"""Devices, processes, stop requests, checkpoints, files and metrics."""
