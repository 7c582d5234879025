"""Tiny checkpoints in the real formats, for tests, demos and benchmarks."""
