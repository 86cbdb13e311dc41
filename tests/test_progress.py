import io
import logging
import sys

import pytest

from lungseg import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_rewritten(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    screen, clock = Terminal(), iter([0.0, 1.0, 1.1, 2.0])
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.ProgressLine(logging.getLogger("test"))
    for text in ("one", "too soon", "two"):
        line.show(text)
    assert screen.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo"
    assert not caplog.records


def test_a_job_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 5.0, 11.0, 12.0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.ProgressLine(logging.getLogger("test"))
    with caplog.at_level(logging.INFO, "test"):
        for text in ("too soon", "one", "again too soon"):
            line.show(text)
        line.say("stays")
    assert [record.message for record in caplog.records] == ["one", "stays"]


def test_a_long_job_says_less_often_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 11.0, 3600.0, 3630.0, 3661.0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    line = progress.ProgressLine(logging.getLogger("test"))
    with caplog.at_level(logging.INFO, "test"):
        for text in ("one", "an hour", "too soon", "a minute later"):
            line.show(text)
    assert [record.message for record in caplog.records] == ["one", "an hour", "a minute later"]


def test_a_line_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "20")
    progress.ProgressLine(logging.getLogger("test")).show("x" * 50)
    assert screen.getvalue() == "\r\x1b[K" + "x" * 19


def test_several_runs_share_a_line_by_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []
    monkeypatch.setattr(progress.ProgressLine, "show", lambda _, text: shown.append(text))
    clock = iter([0.0, 0.1, 3.1, 3.2])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress.ProgressLine, "__init__", lambda *_: None)
    line = progress.SharedLine(logging.getLogger("test"))
    line.show("a", "epoch 1")
    line.show("b", "epoch 2")
    line.show("b", "epoch 3")
    line.end("a")
    line.show("b", "epoch 4")
    assert shown == ["a: epoch 1", "a: epoch 1 | b: epoch 2", "b: epoch 3 | a: epoch 1", "b: epoch 4"]


def test_what_a_run_says_bears_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "test"):
        progress.SharedLine(logging.getLogger("test")).say("a", "failed", logging.ERROR)
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", "a: failed")]
