"""What torch.compile lacks on a machine."""

import shutil
import sysconfig
from pathlib import Path

import pytest

from lungseg.model.compiler import missing_for_compile


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """The compilers of a machine with Python's headers, to be changed."""
    compilers = {"gcc", "g++"}
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return compilers


def test_a_machine_with_compiler_and_headers_lacks_nothing(machine: set[str]) -> None:
    assert missing_for_compile(on_gpu=True) == missing_for_compile(on_gpu=False) == ""


def test_gpus_need_c_and_cpus_need_cpp(machine: set[str]) -> None:
    machine.remove("g++")
    assert missing_for_compile(on_gpu=True) == ""
    assert missing_for_compile(on_gpu=False) == "has no C++ compiler"
    machine.clear()
    assert missing_for_compile(on_gpu=True) == "has no C compiler"


def test_a_named_compiler_must_exist(machine: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/opt/none/bin/cc")
    assert missing_for_compile(on_gpu=True) == "has no C compiler"


def test_headers_are_needed(machine: set[str], tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()
    assert missing_for_compile(on_gpu=True) == "has no Python headers (Python.h)"
