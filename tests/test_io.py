"""avrec.io: there whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from avrec.io import atomic_dir, atomic_write, digest, file_digest, state_of, write_json


def test_a_folder_takes_its_place_once_it_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "new" / "log"
    with atomic_dir(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("replace", [False, True])
def test_after_an_error_the_former_folder_is_all_there_is(tmp_path: Path, replace: bool) -> None:
    def half() -> None:
        with atomic_dir(tmp_path / "log", replace) as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a").write_text("whole")
    with pytest.raises(KeyboardInterrupt):
        half()
    assert [path.read_text() for path in tmp_path.rglob("a")] == ["whole"]


@pytest.mark.parametrize(("replace", "left"), [(False, "first"), (True, "second")])
def test_the_first_folder_stays_unless_it_is_to_be_replaced(tmp_path: Path, replace: bool, left: str) -> None:
    for text in ("first", "second"):
        with atomic_dir(tmp_path / "log", replace) as folder:
            (folder / text).write_text(text)
    assert [path.name for path in (tmp_path / "log").iterdir()] == [left]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    (tmp_path / "log").symlink_to(tmp_path / "there")
    with atomic_dir(tmp_path / "log", replace=True) as folder:
        (folder / "new").touch()
    assert (tmp_path / "log").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["new"]


@pytest.mark.parametrize(("mode", "content"), [("w", "é\n"), ("wb", b"\xff")])
def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path, mode: str, content: str | bytes) -> None:
    path = tmp_path / "new" / "a"

    def half() -> None:
        with atomic_write(path, mode) as file:
            file.write(content[:1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(path.parent.iterdir()) == []
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


def test_a_json_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, [1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    write_json(path, {"é": "\ud800"}, readable=True)
    assert path.read_text("utf-8") == '{\n  "é": "?"\n}\n'


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_file_s_state_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert state_of(path) == [str(path), "missing"]
    path.write_text("1")
    before, bytes_before = state_of(path), file_digest(path)
    assert state_of(path) == before
    path.write_text("12")
    assert state_of(path) != before
    assert file_digest(path) != bytes_before
