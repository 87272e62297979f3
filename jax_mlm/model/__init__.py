"""The encoder and its parameters."""
