"""Benchmarks of engines with weights: our loop beside the released one, on the same models in one run."""
