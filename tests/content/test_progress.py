"""avrec.content.progress: a bar on a terminal, a line in the log elsewhere."""

import logging

import pytest
from rich.console import Console

from avrec.content import progress as module
from avrec.content.progress import progress


def test_without_a_terminal_it_is_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO), progress("preparing text", 3) as advance:
        advance(3)
    assert caplog.messages == ["preparing text: 3 items"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("total", "in_bytes", "shown"), [(4, False, "3/4"), (2000, True, "0.0/2.0 kB")])
def test_on_a_terminal_it_is_a_bar(
    total: int, in_bytes: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100))
    with progress("fetching", total, done=1, in_bytes=in_bytes) as advance:
        advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fetching" in err
    assert shown in err
