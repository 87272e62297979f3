"""A run as people read it: pictures, and one page of HTML."""
