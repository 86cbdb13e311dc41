"""Decode and encode images, normalise intensity, and map geometry."""
