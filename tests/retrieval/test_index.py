"""The index against a slow twin; what it leaves on disk; its mistakes. Covers avrec.retrieval.ivf, too."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.errors import UserError
from avrec.retrieval import index as module
from avrec.retrieval.index import Index

D = 3


class Slow:
    """The obvious twin: a dictionary, sorted anew for every query."""

    def __init__(self) -> None:
        self.vectors: dict[str, np.ndarray] = {}

    def search(self, query: np.ndarray, k: int, allow: list[str] | None, hidden: set[str]) -> list[tuple[str, float]]:
        scores = [(i, float(v @ query)) for i, v in self.vectors.items() if i not in hidden]
        kept = [(i, score) for i, score in scores if allow is None or i in allow]
        return sorted(kept, key=lambda pair: -pair[1])[:k]


def assert_same(index: Index, slow: Slow, queries: np.ndarray, k: int, allow, deny: list[str], seen: list) -> None:
    found = index.search(queries, k, allow, deny, seen)
    for b, query in enumerate(queries):
        wanted = slow.search(query, k, allow, {*deny, *seen[b]})
        assert found.ids[b] == [i for i, _ in wanted]
        assert found.score_BK[b, : len(wanted)].tolist() == [score for _, score in wanted]
        assert (found.score_BK[b, len(wanted) :] == -np.inf).all()


ids_in = st.lists(st.sampled_from([f"i{n}" for n in range(14)]), unique=True)
# Few small whole numbers: products are exact, and ties are everywhere.
vectors_of = st.integers(-1, 1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exact_search_is_the_slow_twin_through_changes_and_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    def vectors(count: int) -> np.ndarray:
        numbers = data.draw(st.lists(vectors_of, min_size=count * D, max_size=count * D))
        return np.asarray(numbers, np.float32).reshape(count, D)

    index, slow = Index([], np.zeros((0, D))), Slow()
    for _ in range(data.draw(st.integers(1, 3))):
        new = [i for i in data.draw(ids_in) if i not in slow.vectors]
        added = vectors(len(new))
        index.add(new, added)
        slow.vectors.update(zip(new, added, strict=True))
        gone = [i for i in data.draw(ids_in) if i in slow.vectors]
        index.remove(gone)
        for item_id in gone:
            del slow.vectors[item_id]
        if data.draw(st.booleans()):
            folder = index.save(tmp_path_factory.mktemp("index") / "index")
            assert_same(Index.load(folder, mapped=True), slow, vectors(1), 3, None, [], [[]])
            index = Index.load(folder)
        queries = vectors(data.draw(st.integers(0, 3)))
        seen = [data.draw(ids_in) for _ in queries]
        allow = data.draw(st.none() | ids_in)
        assert_same(index, slow, queries, data.draw(st.integers(1, 6)), allow, data.draw(ids_in), seen)
        assert len(index) == len(slow.vectors)
        assert all(item_id in index for item_id in slow.vectors)


def test_many_queries_in_small_blocks_give_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = rng.standard_normal((40, D)), rng.standard_normal((9, D))
    index = Index([str(n) for n in range(40)], vectors)
    seen = [[str(n)] for n in range(9)]
    whole = index.search(queries, 5, seen=seen)
    monkeypatch.setattr(module, "BLOCK_SCORES", 80)
    parts = index.search(queries, 5, seen=seen)
    assert parts.ids == whole.ids
    np.testing.assert_allclose(parts.score_BK, whole.score_BK, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------
# HNSW


@pytest.fixture(scope="module")
def unit() -> np.ndarray:
    """Unit vectors with a power-law spectrum."""
    vectors = np.random.default_rng(1).standard_normal((3000, 16)) * np.arange(1, 17) ** -0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def named(count: int, start: int = 0) -> list[str]:
    return [f"i{n}" for n in range(start, start + count)]


def recall(lists: Index, exact: Index, queries: np.ndarray, **filters) -> float:
    pairs = zip(lists.search(queries, 20, **filters).ids, exact.search(queries, 20, **filters).ids, strict=True)
    return float(np.mean([len(set(found) & set(wanted)) / len(wanted) for found, wanted in pairs]))


def test_the_lists_find_nearly_all_through_changes_and_files(
    unit: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'avrec[retrieval]'")
    lists, exact = Index(named(2000), unit[:2000], approximate_above=1999), Index(named(2000), unit[:2000])
    queries = unit[2900:2960]
    assert lists.recall >= 0.95
    assert f"approximate search of 2,000 items: recall@100 {lists.recall:.3f} against exact" in capsys.readouterr().out
    assert exact.recall is None
    assert recall(lists, exact, queries) >= 0.95
    assert recall(lists, exact, queries[:1]) >= 0.9
    for index in (lists, exact):
        index.remove(named(700))
        index.add(named(500, 2000), unit[2000:2500])
        index.remove(["i2499"])
    assert recall(lists, exact, queries) >= 0.95
    loaded = Index.load(lists.save(tmp_path / "index"), mapped=True)
    assert loaded.search(queries, 20).ids == lists.search(queries, 20).ids
    assert loaded.recall == lists.recall
    again = Index.load(tmp_path / "index")
    again.add(["new"], queries[:1])
    assert again.search(queries[:1], 1).ids == [["new"]]


def test_what_filters_hide_from_lists_is_made_up_for(unit: np.ndarray) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'avrec[retrieval]'")
    lists, exact = Index(named(2000), unit[:2000], approximate_above=0), Index(named(2000), unit[:2000])
    queries = unit[2900:2910]
    best = exact.search(queries, 60).ids
    filters = {"seen": best, "deny": best[0]}
    found = lists.search(queries, 20, **filters)
    assert all(len(ids) == 20 and not {*ids} & {*best[b], *best[0]} for b, ids in enumerate(found.ids))
    assert recall(lists, exact, queries, **filters) >= 0.9
    # So much that the lists are not asked any more, and an allow list: exact.
    for filters in ({"deny": named(1500)}, {"allow": named(900, 300), "deny": best[1]}):
        assert lists.search(queries, 20, **filters).ids == exact.search(queries, 20, **filters).ids


def test_recall_holds_behind_what_is_hidden() -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'avrec[retrieval]'")
    vectors = np.random.default_rng(3).standard_normal((20_100, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lists, exact = Index(named(20_000), vectors[:-100], 0), Index(named(20_000), vectors[:-100])
    queries = vectors[-100:]
    best = exact.search(queries, 3000).ids
    for hidden, k in ((400, 100), (800, 100), (0, 900)):
        found = lists.search(queries, k, seen=[ids[:hidden] for ids in best]).ids
        wanted = [ids[hidden : hidden + k] for ids in best]
        assert np.mean([len({*a} & {*b}) / k for a, b in zip(found, wanted, strict=True)]) >= 0.94
    # Beyond that, search is exact.
    found = lists.search(queries[:9], 100, seen=[ids[:2000] for ids in best[:9]]).ids
    assert found == [ids[2000:2100] for ids in best[:9]]


def test_there_are_no_more_columns_than_items(unit: np.ndarray) -> None:
    found = Index(named(5), unit[:5]).search(unit[:2], k=10**12, deny=["i1"])
    assert found.score_BK.shape == (2, 5)
    assert [len(ids) for ids in found.ids] == [4, 4]


def test_ties_of_approximate_search_stand_in_the_order_of_items() -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'avrec[retrieval]'")
    vectors = np.repeat(np.eye(16, dtype=np.float32), 5, axis=0)
    lists = Index(named(80), vectors, approximate_above=0)
    assert lists.search(vectors[:1], 5).ids == [named(5)]


# ---------------------------------------------------------------------------------------------------------
# Files and mistakes


def test_nothing_of_training_is_needed() -> None:
    code = (
        "import sys\n"
        "for name in 'pytorch_lightning hydra omegaconf wandb faiss polars'.split(): sys.modules[name] = None\n"
        "import numpy as np; from avrec.retrieval import Index\n"
        "print(Index(['a', 'b'], np.eye(2)).search(np.eye(2), 1).ids)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[['a'], ['b']]"


def test_a_missing_faiss_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'avrec\[retrieval\]', or give\s+approximate_above=None"):
        Index(["a", "b"], np.eye(2), approximate_above=1)


def test_saving_replaces_an_index_and_nothing_else(tmp_path: Path) -> None:
    index = Index(["a"], np.ones((1, 2)))
    index.save(tmp_path / "index")
    mapped = Index.load(tmp_path / "index", mapped=True)
    Index(["b", "c"], np.eye(2)).save(tmp_path / "index")
    assert Index.load(tmp_path / "index").ids == ["b", "c"]
    (tmp_path / "index" / "how-it-was-built.txt").write_text("with care")
    Index(["b", "c"], np.eye(2)).save(tmp_path / "index")
    assert (tmp_path / "index" / "how-it-was-built.txt").read_text() == "with care"
    assert len(list((tmp_path / "index").iterdir())) == 3
    assert mapped.search(np.ones((1, 2)), 1).ids == [["a"]]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is there and is no index"):
        index.save(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other"]


def test_a_mapped_index_is_saved_whole(unit: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'avrec[retrieval]'")
    first = Index(named(2000), unit[:2000], approximate_above=0).save(tmp_path / "a")
    wanted = Index.load(first).search(unit[2000:2010], 20).ids
    for place in ("a", "b", "b"):  # over itself, elsewhere, and over that
        Index.load(first, mapped=True).save(tmp_path / place)
        for mapped in (True, False):
            assert Index.load(tmp_path / place, mapped).search(unit[2000:2010], 20).ids == wanted
    assert len(list(first.iterdir())) == 3


def test_who_loads_while_another_saves_gets_one_of_the_two(tmp_path: Path) -> None:
    """Each vector says which of the two it is of, and so do the ids."""
    one, two = (Index([f"{n}-{i}" for i in range(300)], np.full((300, 2), n)) for n in (1, 2))
    one.save(tmp_path / "index")
    process = multiprocessing.get_context("fork").Process(target=save_in_turns, args=(tmp_path / "index", two, one))
    process.start()
    loads = 0
    while process.is_alive():
        index = Index.load(tmp_path / "index", mapped=bool(loads % 2))
        assert {item_id[0] for item_id in index.ids} == {str(int(index.vector_ND[0, 0]))}
        loads += 1
    assert process.exitcode == 0
    assert loads > 10


def save_in_turns(folder: Path, *indexes: Index) -> None:
    for _ in range(100):
        for index in indexes:
            index.save(folder)


@pytest.mark.parametrize(
    "change", [*({"ids": ids} for ids in (["a", "a"], [1, 2], "ab", {"a": 0, "b": 1})), {"keys": [0, 0]}]
)
def test_ids_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Index(["a", "b"], np.eye(2)).save(tmp_path / "index")
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(UserError, match="is no index that can be read"):
        Index.load(folder)


@pytest.mark.parametrize("vectors", [np.full((2, 2), np.nan, np.float32), np.eye(2), np.ones(2, np.float32)])
def test_vectors_that_are_none_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    folder = Index(["a", "b"], np.eye(2)).save(tmp_path / "index")
    np.save(next(folder.glob("vectors-*.npy")), vectors)
    with pytest.raises(UserError, match="is no index that can be read"):
        Index.load(folder)


def test_a_place_that_cannot_be_written_and_a_link(tmp_path: Path) -> None:
    index = Index(["a"], np.ones((1, 2)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        index.save(tmp_path / "file" / "index")
    index.save(tmp_path / "index")
    (tmp_path / "link").symlink_to("index")
    assert index.save(tmp_path / "link") == tmp_path / "index"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("damage", ["missing", "json", "format", "vectors", "length"])
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    folder = Index(["a"], np.ones((1, 2))).save(tmp_path / "index")
    about = json.loads((folder / "index.json").read_text())
    if damage == "missing":
        folder = tmp_path / "nothing"
    elif damage == "json":
        (folder / "index.json").write_text("{")
    elif damage == "vectors":
        next(folder.glob("vectors-*.npy")).write_bytes(b"no array")
    else:
        changed = {"format": 99} if damage == "format" else {"ids": ["a", "b"]}
        (folder / "index.json").write_text(json.dumps({**about, **changed}))
    with pytest.raises(UserError, match="is no index that can be read: .* Build it again"):
        Index.load(folder)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda index: index.add(["a"], np.ones((1, 2))), "id 'a' is no text, or stands twice"),
        (lambda index: index.add(["c", "c"], np.ones((2, 2))), "id 'c' is no text, or stands twice"),
        (lambda index: index.add([7], np.ones((1, 2))), "id 7 is no text"),
        (lambda index: index.add([None], np.ones((1, 2))), "id None is no text"),
        (lambda index: index.add(["c"], [["x", "y"]]), "Vectors are no array of numbers"),
        (lambda index: index.add(["c"], np.ones((1, 3))), r"1 ids and vectors of shape \(1, 3\)"),
        (lambda index: index.add(["c"], np.full((1, 2), np.nan)), "embedding is not finite"),
        (lambda index: index.remove(["a", "z"]), "1 ids are not in the index, the first is 'z'. Nothing is removed"),
        (lambda index: index.search(np.ones((1, 2)), 0), "k must be a whole number from 1"),
        (lambda index: index.search(np.ones((1, 2)), None), "k=None and queries"),
        (lambda index: index.search(np.ones((1, 2)), True), "k=True and queries"),
        (lambda index: index.search(torch.ones(1, 2, requires_grad=True)), "Queries are no array of numbers"),
        (lambda index: index.search(np.ones((1, 2)), deny=None), "A filter holds something else than ids"),
        (lambda index: index.search(np.ones((1, 2)), seen=[None]), "A filter holds something else than ids"),
        (lambda index: index.search(np.ones(2)), r"queries \(B, 2\)"),
        (lambda index: index.search(np.full((1, 2), np.inf)), "query is not finite"),
        (lambda index: index.search(np.ones((2, 2)), seen=[[]]), "Use one list per query"),
    ],
)
def test_a_mistake_is_one_clear_error_and_changes_nothing(act, message: str) -> None:
    index = Index(["a", "b"], np.eye(2))
    with pytest.raises(UserError, match=message):
        act(index)
    assert index.ids == ["a", "b"]
    assert len(index.vector_ND) == 2


@pytest.mark.filterwarnings("error")
def test_read_only_vectors_are_taken(unit: np.ndarray) -> None:
    fixed = unit.copy()
    fixed.flags.writeable = False
    assert Index(named(len(fixed)), fixed).search(fixed[:1], k=1).ids == [named(1)]


def test_a_mapped_index_is_not_changed(tmp_path: Path) -> None:
    mapped = Index.load(Index(["a"], np.ones((1, 2))).save(tmp_path / "index"), mapped=True)
    for change in (lambda: mapped.remove(["a"]), lambda: mapped.add(["b"], np.ones((1, 2)))):
        with pytest.raises(UserError, match="cannot be changed. Load it with mapped=False"):
            change()


def test_one_text_is_no_filter_and_files_of_two_indexes_are_none(unit: np.ndarray, tmp_path: Path) -> None:
    index = Index(named(20), unit[:20])
    for filters in ({"allow": "i1"}, {"deny": "i1"}, {"seen": ["i1"]}):
        with pytest.raises(UserError, match="read letter by letter"):
            index.search(unit[:1], 3, **filters)
    folder = index.save(tmp_path / "index")
    next(folder.glob("vectors-*.npy")).write_bytes(b"")
    with pytest.raises(UserError, match="no index that can be read"):
        Index.load(folder)
