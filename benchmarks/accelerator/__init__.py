"""What a person with some minutes of an accelerator runs: benchmarks/on_accelerator.sh."""
