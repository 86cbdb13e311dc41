"""Segmentation metrics, confidence intervals and paired tests."""
