"""From a file to a checked Record."""
