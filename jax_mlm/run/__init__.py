"""The files of a run: its directory, its log, its checkpoints."""
