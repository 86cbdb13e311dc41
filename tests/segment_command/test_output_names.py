"""Names of output files: safe, readable, and each only once."""

import pytest

from lungseg.segment_command.output_names import safe_path, unique_paths


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("Thorax Müller (1)", "Thorax Müller (1)"),
        ("ward 3/a", "ward 3/a"),
        ("../../etc/passwd", "etc/passwd"),
        ("/abs//./x", "abs/x"),
        ("..", "image"),
        ("a\nb\x1b[2J", "a_b_[2J"),
        ("C:\\x", "C_x"),
        (".hidden", "hidden"),
        ("NUL", "_NUL"),
        ("Mu\u0308ller", "Müller"),
    ],
)
def test_names_stay_readable_and_inside_their_folder(path: str, safe: str) -> None:
    assert safe_path(path) == safe


def test_long_names_are_cut_and_stay_different() -> None:
    first, second = (safe_path("ü" * 200 + end) for end in "ab")
    assert first != second
    assert len(first.encode()) <= 150


def test_equal_paths_are_numbered() -> None:
    assert unique_paths(["a", "b", "A", "a", "a-2"]) == ["a", "b", "A-2", "a-3", "a-2-2"]
