"""Command line of lungseg segment."""

import pytest

from lungseg.config.segment import parse_segment, segment_help
from lungseg.errors import SettingsError


def test_paths_and_options_are_read() -> None:
    settings = parse_segment(["a.png", "-o", "out", "b", "--formats", "masks", "dicom-seg", "--strict"])
    assert settings.paths == ("a.png", "b")
    assert (settings.out, settings.model, settings.strict) == ("out", "lungs", True)
    assert settings.formats == ("masks", "dicom-seg")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-o out", "no X-ray named"),
        ("a.png", "no output folder named: pass -o OUT"),
        ("a.png -o", "-o/--out: expected one argument"),
        ("a.png -o out --modle x", "unknown option --modle: did you mean --model?"),
        (
            "-o out --formats masks a.png",
            "expected 'masks', 'lung-masks', 'class-masks', 'overlays' or 'dicom-seg'; paths come before",
        ),
    ],
)
def test_a_wrong_line_gets_one_sentence(line: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_segment(line.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_help_fits_a_terminal() -> None:
    assert max(map(len, segment_help().splitlines())) <= 80
