"""Modules of `benchmarks.etta_shift`."""
