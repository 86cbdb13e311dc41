"""What torch.compile needs on a machine besides torch. Does not import torch."""

import os
import shutil
import sysconfig
from pathlib import Path


def missing_for_compile(on_gpu: bool) -> str:
    """Say what torch.compile lacks on this machine; "" if nothing.

    For a GPU, Triton compiles its launcher in C; for a CPU, torch compiles the kernels in C++. Both need Python.h.
    """
    variable, names, language = ("CC", ("gcc", "clang"), "C") if on_gpu else ("CXX", ("g++", "clang++"), "C++")
    compiler = os.environ.get(variable)
    if not any(map(shutil.which, [compiler] if compiler else names)):
        return f"has no {language} compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "has no Python headers (Python.h)"
    return ""
