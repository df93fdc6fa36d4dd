"""Rewards computed in this process."""
