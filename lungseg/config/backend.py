"""The library that computes a network, and where each can be used."""

from typing import Literal

Backend = Literal["auto", "torch", "onnxruntime", "openvino"]
"""auto: torch on GPUs; on CPUs the fastest installed one whose masks are those of torch."""
