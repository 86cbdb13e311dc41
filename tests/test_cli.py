"""Exit statuses and printed output of the command line."""

import logging
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from lungseg import __version__, cli
from lungseg.config.overview import DAILY_COMMANDS, OTHER_COMMANDS
from lungseg.config.recipes import RECIPES
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


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def run(settings: object) -> None:
        interruption = KeyboardInterrupt()
        if settings == "explained":
            interruption.add_note("2 of 3 images are written")
        raise interruption

    monkeypatch.setattr(logging.getLogger("lungseg"), "handlers", [])
    monkeypatch.setitem(sys.modules, "lungseg.pipelines.report", SimpleNamespace(run=run))
    assert cli.main("report", []) == 130
    assert "interrupted: the same command continues where this one stopped" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "lungseg.pipelines.report", SimpleNamespace(run=lambda _: run("explained")))
    assert cli.main("report", []) == 130
    assert "interrupted: 2 of 3 images are written" in capfd.readouterr().err


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
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(logging.getLogger("lungseg"), "handlers", [])
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(sys, "argv", ["report"])
    monkeypatch.setitem(sys.modules, "lungseg.pipelines.report", SimpleNamespace(run=run))
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run_command("report")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
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


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch([]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines if line.startswith("  ")}
    assert named == {*DAILY_COMMANDS, *RECIPES, *OTHER_COMMANDS}
    assert max(map(len, lines)) <= 80


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"lungseg {__version__}\n"


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("trian", "no command 'trian': did you mean lungseg train?"),
        ("reports", "did you mean lungseg report?"),
        ("qqq", "no command 'qqq': lungseg --help lists the commands"),
        ("\x1b[2J", "no command '\\x1b[2J'"),
    ],
)
def test_an_unknown_command_gets_the_nearest_one(
    word: str, answer: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger("lungseg"), "handlers", [])
    assert cli.dispatch([word]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert answer in line


def test_a_job_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["infer", "archive", "--archive", "x", "--checkpoint", "y", "--dry-run"]) == 0
    assert "To repeat it: lungseg infer --config FILE" in capsys.readouterr().out
