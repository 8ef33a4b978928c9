"""Parts of `benchmarks.etta_shift`."""
