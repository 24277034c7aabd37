"""Hold programs: what they are, their text, their rules and their meaning."""
