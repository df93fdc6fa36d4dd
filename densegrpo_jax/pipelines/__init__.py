"""Whole pipelines: folders, tokenizers, text to conditioning, latents to images."""
