"""README's example in plain Python, as it is printed."""

import re
from pathlib import Path

import pytest

import avrec

ROOT = Path(__file__).resolve().parent.parent


def test_the_plain_example_runs_as_printed(
    tmp_path: Path, demo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"# in plain Python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    (tmp_path / "my_catalogue").symlink_to(demo_root)
    monkeypatch.chdir(tmp_path)
    exec(code.group(1), {"__name__": "__main__"})
    assert re.search(r"^all ndcg@10 0\.\d{4} \[", capsys.readouterr().out, re.M)
    tower = avrec.load_item_tower(tmp_path / "item_tower")
    assert tower.embed([{"title": "A new upload"}]).shape == (1, 64)


def test_public_names_are_there_and_documented() -> None:
    for name in avrec.__all__:
        assert getattr(avrec, name).__doc__, name
