"""A run as people read it: the live panel, charts, and pages."""
