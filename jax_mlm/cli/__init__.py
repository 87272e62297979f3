"""Command lines: parsing, help, one clear line for a mistake."""
