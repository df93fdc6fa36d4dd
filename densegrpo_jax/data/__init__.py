"""Words, coloured shapes, OCR scenes, GenEval prompts, prompt sets and the group sampler."""
