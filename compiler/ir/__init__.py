"""Define programs as the compiler sees them: their data, text, rules and meaning."""
