"""The drivers that put each stage on a cluster."""
