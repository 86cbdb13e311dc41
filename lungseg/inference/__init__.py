"""Predict one image or batch and describe it as a row."""
