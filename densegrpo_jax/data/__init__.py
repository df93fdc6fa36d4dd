"""Words, rendered pictures, prompt sets, the group sampler and tokenizers."""
