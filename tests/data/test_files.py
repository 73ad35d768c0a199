"""avrec.io: there whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from avrec.io import digest, state_of, whole_folder, write_json


def test_a_folder_takes_its_place_once_it_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "log"
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [target]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    def half() -> None:
        with whole_folder(tmp_path / "log") as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


def test_who_was_first_stays(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "log") as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "log" / "a").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_json_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, [1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_json(path, [2])
    assert json.loads(path.read_text()) == [1]
    write_json(path, [3])
    assert json.loads(path.read_text()) == [3]


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_file_s_state_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert state_of(path) == [str(path), "missing"]
    path.write_text("1")
    before = state_of(path)
    assert state_of(path) == before
    path.write_text("12")
    assert state_of(path) != before
