"""Define programs: what they are, their text and their rules."""
