"""Arithmetic and memory of a run, counted from its configuration."""
