"""Define programs: their data, their text and their rules."""
