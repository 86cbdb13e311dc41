import io
import logging
import sys

import pytest

from lungseg import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminal_rewrites_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    screen, clock = Terminal(), iter([0.0, 1.0, 1.1, 2.0])
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.ProgressLine(logging.getLogger("test"))
    for text in ("one", "too soon", "two"):
        line.update(text)
    assert screen.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo"
    assert not caplog.records


def test_log_gets_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 15.0, 31.0, 32.0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.ProgressLine(logging.getLogger("test"))
    with caplog.at_level(logging.INFO, "test"):
        for text in ("too soon", "one", "again too soon"):
            line.update(text)
        line.log("always")
    assert [record.message for record in caplog.records] == ["one", "always"]


def test_log_of_a_long_job_gets_fewer_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 31.0, 3600.0, 3630.0, 3661.0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.ProgressLine(logging.getLogger("test"))
    with caplog.at_level(logging.INFO, "test"):
        for text in ("one", "an hour", "too soon", "a minute later"):
            line.update(text)
    assert [record.message for record in caplog.records] == ["one", "an hour", "a minute later"]


def test_line_is_cut_to_the_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "20")
    progress.ProgressLine(logging.getLogger("test")).update("x" * 50)
    assert screen.getvalue() == "\r\x1b[K" + "x" * 19


def test_runs_share_a_line_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(progress.ProgressLine, "update", lambda _, text: shown.append(text))
    clock = iter([0.0, 0.1, 3.1, 3.2])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress.ProgressLine, "__init__", lambda *_: None)
    line = progress.SharedProgressLine(logging.getLogger("test"))
    line.update("a", "epoch 1")
    line.update("b", "epoch 2")
    line.update("b", "epoch 3")
    line.remove("a")
    line.update("b", "epoch 4")
    assert shown == ["a: epoch 1", "a: epoch 1 | b: epoch 2", "b: epoch 3 | a: epoch 1", "b: epoch 4"]


def test_line_of_a_run_starts_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "test"):
        progress.SharedProgressLine(logging.getLogger("test")).log("a", "failed", logging.ERROR)
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", "a: failed")]
