"""Drive a build: its options and its phases."""
