"""Files of weights: safetensors, adapters, original layouts, the Hub."""
