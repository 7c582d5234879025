"""Exports: graded trajectories as rows that LLaMA-Factory, TRL and verl read."""
