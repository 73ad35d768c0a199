"""The content store against a dictionary, and against interruptions.

Covers avrec.content.keys.
"""

import os
import pickle
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.batch import Array
from avrec.content import store as content_store
from avrec.content.items import DecodeFailure
from avrec.content.preprocess import ArraySpec
from avrec.content.store import ContentStore, PreparedModality, Row
from avrec.errors import UserError

ARRAYS = {"pixels": ArraySpec((2, 3), "uint8"), "large": ArraySpec((2500,), "float32"), "n": ArraySpec((), "int64")}


def row_of(seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "pixels": random.integers(0, 255, (2, 3), dtype=np.uint8),
        "large": random.random(2500, dtype=np.float32),
        "n": np.array(seed),
    }


def assert_reads(store: ContentStore, expected: dict[str, dict[str, Array]], keys: list[str]) -> None:
    read = store.read(keys)
    assert list(read) == sorted(ARRAYS)
    for name, values in read.items():
        assert values.dtype == ARRAYS[name].dtype
        assert values.shape == (len(keys), *ARRAYS[name].shape)
        for key, value in zip(keys, values, strict=True):
            np.testing.assert_array_equal(value, expected[key][name])


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_it_is_a_dictionary_on_disk(data: st.DataObject) -> None:
    keys = st.text("abcé/. ", max_size=3)
    shards = data.draw(st.lists(st.dictionaries(keys, st.one_of(st.none(), st.integers(0, 99))), max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        writer = ContentStore(Path(folder), ARRAYS)
        expected: dict[str, dict[str, Array]] = {}
        for shard in shards:
            # As in use: what is present is not written again.
            new = {key: seed for key, seed in shard.items() if key not in writer}
            writer.write_shard([(key, None if seed is None else row_of(seed)) for key, seed in new.items()])
            expected |= {key: row_of(seed) for key, seed in new.items() if seed is not None}
        tried = {key for shard in shards for key in shard}
        for store in (writer, ContentStore(Path(folder), ARRAYS), pickle.loads(pickle.dumps(writer))):
            assert len(store) == len(tried)
            assert all(key in store for key in tried)
            assert "never written" not in store
            assert {key for key in tried if store.has_content(key)} == set(expected)
            wanted = st.lists(st.sampled_from(sorted(expected)), max_size=12) if expected else st.just([])
            assert_reads(store, expected, data.draw(wanted))


def test_more_shards_than_open_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_store, "mapped", lru_cache(4)(content_store.mapped.__wrapped__))
    store = ContentStore(tmp_path, ARRAYS)
    expected = {str(seed): row_of(seed) for seed in range(9)}
    for key, row in expected.items():
        store.write_shard([(key, row)])
    assert_reads(store, expected, ["3", "8", "0", "3", "5", "1", "7"])
    assert_reads(store, expected, list(expected))


def test_failures_are_kept(tmp_path: Path) -> None:
    failures = {"b": [DecodeFailure("item", "/p/\udcff.jpg", "is empty")]}
    rows: list[tuple[str, Row]] = [("a", row_of(1)), ("b", None)]
    ContentStore(tmp_path, ARRAYS).write_shard(rows, failures)
    store = ContentStore(tmp_path, ARRAYS)
    assert store.failures == failures
    assert "b" in store
    assert not store.has_content("b")
    with pytest.raises(KeyError, match="1 of 2 keys have no row"):
        store.read(["a", "b"])


def test_two_writers_see_each_other_after_a_refresh(tmp_path: Path) -> None:
    one, two = ContentStore(tmp_path, ARRAYS), ContentStore(tmp_path, ARRAYS)
    one.write_shard([("a", row_of(1)), ("both", row_of(3))])
    two.write_shard([("b", row_of(2)), ("both", row_of(3))])
    assert "b" not in one
    expected = {"a": row_of(1), "b": row_of(2), "both": row_of(3)}
    for store in (one, two):
        store.refresh()
        assert_reads(store, expected, ["b", "both", "a"])


@pytest.mark.parametrize("broken", ["json before its renaming", "json never written", "array cut short"])
def test_an_interrupted_shard_is_invisible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = ContentStore(tmp_path, ARRAYS)
    store.write_shard([("a", row_of(1))])
    before = set(tmp_path.iterdir())
    if broken == "json before its renaming":
        monkeypatch.setattr(os, "replace", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write_shard([("b", row_of(2))])
        monkeypatch.undo()
    else:
        store.write_shard([("b", row_of(2))])
    new = set(tmp_path.iterdir()) - before
    if broken == "json never written":
        next(path for path in new if path.suffix == ".json").unlink()
    if broken == "array cut short":
        path = next(path for path in new if ".large." in path.name)
        path.write_bytes(path.read_bytes()[:1000])
    reopened = ContentStore(tmp_path, ARRAYS)
    assert "a" in reopened
    assert "b" not in reopened
    assert ("is damaged and not used" in caplog.text) == (broken == "array cut short")
    reopened.write_shard([("b", row_of(2))])
    assert_reads(ContentStore(tmp_path, ARRAYS), {"a": row_of(1), "b": row_of(2)}, ["b", "a"])


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_leftovers_go_once_they_are_old(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, ARRAYS)
    store.write_shard([("a", row_of(1))])
    kept = set(tmp_path.iterdir())
    leftovers = [tmp_path / "shard-0.n.npy", tmp_path / "shard-0.json.1.tmp"]
    for path in leftovers:
        path.touch()
    ContentStore(tmp_path, ARRAYS)
    assert set(tmp_path.iterdir()) == kept | set(leftovers)
    for path in [*leftovers, *kept]:
        os.utime(path, (time.time() - 4000,) * 2)
    ContentStore(tmp_path, ARRAYS)
    assert set(tmp_path.iterdir()) == kept


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    ContentStore(tmp_path, ARRAYS)
    ContentStore(tmp_path, dict(reversed(ARRAYS.items())))
    with pytest.raises(UserError, match=r"pixels uint8 \(2, 3\); the preprocess declares pixels uint8 \(4,\)"):
        ContentStore(tmp_path, {"pixels": ArraySpec((4,), "uint8")})


@pytest.mark.parametrize(
    "row",
    [
        {"pixels": np.zeros((2, 3), np.uint8)},
        {**row_of(1), "pixels": np.zeros((3, 2), np.uint8)},
        {**row_of(1), "pixels": np.zeros((2, 3))},
        {**row_of(1), "more": np.zeros(1)},
    ],
)
def test_rows_of_other_arrays_are_refused(tmp_path: Path, row: dict[str, Array]) -> None:
    store = ContentStore(tmp_path, ARRAYS)
    with pytest.raises(ValueError, match="declared"):
        store.write_shard([("a", row)])
    assert "a" not in store


@pytest.mark.parametrize("kept_bytes", [0, 1 << 30])
def test_what_is_kept_in_memory_reads_as_from_disk(tmp_path, monkeypatch, kept_bytes):
    monkeypatch.setattr(content_store, "KEPT_BYTES", kept_bytes)
    store = ContentStore(tmp_path, ARRAYS)
    keys = [str(n) for n in range(7)]
    for begin in (0, 4):
        store.write_shard([(key, row_of(int(key))) for key in keys[begin : begin + 4]])
    prepared = PreparedModality("vision", store.reader, store.locate(["5", "", "0", "3", "none"]))
    for one in (prepared, pickle.loads(pickle.dumps(prepared)), prepared):
        for indices, expected in (([3, 0, 3], [3, 5, 3]), ([2], [0]), ([], [])):
            for name, values in one.read(np.array(indices, np.int64)).items():
                assert len(values) == len(expected)
                for value, seed in zip(values, expected, strict=True):
                    np.testing.assert_array_equal(value, row_of(seed)[name])
        assert (one._kept is not None) == bool(kept_bytes)
        with pytest.raises(IndexError, match=r"2 items have no vision \(\[1 4\]"):
            one.read(np.array([0, 1, 4]))
    assert len(pickle.dumps(prepared)) < 5000
