"""Stages of the pretraining of a miniature."""
