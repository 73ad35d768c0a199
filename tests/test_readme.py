"""README: its example in plain Python runs as printed, and its map of the folders equals the tree."""

import re
from pathlib import Path

import pytest

import avrec

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_plain_example_runs_as_printed(
    tmp_path: Path, demo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"# in plain Python\n(.*?)```", README, re.S)
    assert code
    (tmp_path / "my_catalogue").symlink_to(demo_root)
    monkeypatch.chdir(tmp_path)
    exec(code.group(1), {"__name__": "__main__"})
    assert re.search(r"^all ndcg@10 0\.\d{4} \[", capsys.readouterr().out, re.M)
    tower = avrec.load_item_tower(tmp_path / "item_tower")
    assert tower.embed([{"title": "A new upload"}]).shape == (1, 64)


def test_the_map_of_the_folders_equals_the_tree() -> None:
    shown = re.findall(r"^\| `([\w./]+)` ", README.partition("## Folders")[2].partition("## State")[0], re.M)
    # A folder counts if it holds files of the project: caches, builds and environments do not.
    folders = [path for path in ROOT.iterdir() if path.name in ("conf", "benchmarks", "docs", "tests")]
    rooms = [path.parent for path in (ROOT / "avrec").glob("*/__init__.py")]
    modules = [path for path in (ROOT / "avrec").glob("*.py") if not path.name.startswith("__")]
    there = [f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in [*folders, *rooms, *modules]]
    assert sorted(shown) == sorted(there)


def test_public_names_are_there_and_documented() -> None:
    for name in avrec.__all__:
        assert getattr(avrec, name).__doc__, name
