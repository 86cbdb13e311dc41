"""Distributed training and batch inference for lung segmentation in frontal chest X-rays."""

__version__ = "0.1.0"
