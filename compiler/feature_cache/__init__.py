"""Hold what the feature caches share: partitions, schedules, costs."""
