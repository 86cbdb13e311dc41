"""Exit statuses and printed output of the command line."""

import logging
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from lungseg import cli
from lungseg.errors import InputError, ResourceError, SettingsError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (InputError("x: no such folder: check the path"), 1),
        (ResourceError("3 CPUs needed"), 1),
        (SettingsError("no data named"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_becomes_a_line_and_a_status(
    error: BaseException | None, status: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(settings: object) -> None:
        if error is not None:
            raise error

    # The handler of another test writes to that test's stream.
    monkeypatch.setattr(logging.getLogger("lungseg"), "handlers", [])
    monkeypatch.setitem(sys.modules, "lungseg.pipelines.report", SimpleNamespace(run=run))
    assert cli.main("report", []) == status
    output = capfd.readouterr().err
    assert (str(error) in output) if error is not None and str(error) else True
    assert "Traceback" not in output


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(settings: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(sys.modules, "lungseg.pipelines.report", SimpleNamespace(run=run))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main("report", [])


def test_sigterm_ends_a_job_with_a_line_and_143(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(settings: object) -> None:
        cli._terminate(signal.SIGTERM, None)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(logging.getLogger("lungseg"), "handlers", [])
    monkeypatch.setitem(sys.modules, "lungseg.pipelines.report", SimpleNamespace(run=run))
    try:
        assert cli.main("report", []) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    output = capfd.readouterr().err
    assert "terminated: the same command continues" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("option", ["--help", "--dry-run"])
def test_a_reader_that_closes_the_pipe_is_no_error(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert cli.main("train", ["small", option]) == 0


def test_help_with_an_unknown_recipe_ends_with_2() -> None:
    assert cli.main("train", ["nonesuch", "--help"]) == 2
