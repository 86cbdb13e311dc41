"""Measure the speed of every stage of training and inference on one machine."""
