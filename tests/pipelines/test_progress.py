import io
import logging
import sys

import pytest

from lungseg.pipelines import progress


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
