"""Parts of the benchmarks of the label filter."""
