"""Words, rendered pictures, coloured shapes, OCR scenes, GenEval prompts, prompt sets, the group sampler and tokenizers."""
