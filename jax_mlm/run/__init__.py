"""What a run leaves behind: its directory, its log, its checkpoints."""
