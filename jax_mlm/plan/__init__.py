"""FLOPs of a run, counted from its configuration."""
