"""Cross-dataset results and comparisons between studies."""
