"""Labelled slices against loops over users."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.errors import UserError
from avrec.evaluation.slices import (
    candidate_slice,
    decile_labels,
    item_slices,
    length_labels,
    present_labels,
    slices_of,
    target_slices,
    user_slices,
)

LABELS = st.sampled_from(["1-5", "6-20", "21-50", "51-", None, ""])


def random_task(make_task, seed, users=30, items=15):
    rng = np.random.default_rng(seed)
    relevant = [rng.permutation(items)[: rng.integers(1, 5)].tolist() for _ in range(users)]
    return make_task(relevant, items, cold_N=rng.random(items) < 0.2, popularity_N=rng.integers(0, 9, items))


@given(seed=st.integers(0, 2**32), labels=st.lists(LABELS, min_size=30, max_size=30))
@settings(max_examples=60, deadline=None)
def test_user_slices_equal_a_loop(make_task, seed, labels):
    task = random_task(make_task, seed)
    found = user_slices(task, "history_length", labels)
    large = [name for name in ("1-5", "6-20", "21-50", "51-") if labels.count(name) >= 5]
    assert [part.name for part in found] == [f"history_length: {name}" for name in large]
    for part, name in zip(found, large, strict=True):
        assert part.rows.tolist() == [user for user, label in enumerate(labels) if label == name]
        assert [part.relevant[place].tolist() for place in range(len(part.rows))] == [
            task.relevant[user].tolist() for user in part.rows
        ]
        assert part.candidates == slices_of(task)[0].candidates


@given(seed=st.integers(0, 2**32), labels=st.lists(LABELS, min_size=15, max_size=15))
@settings(max_examples=60, deadline=None)
def test_item_slices_equal_a_loop(make_task, seed, labels):
    task = random_task(make_task, seed)
    found = {part.name: part for part in item_slices(task, "label", np.array(labels, dtype=object))}
    for name in ("1-5", "6-20", "21-50", "51-"):
        wanted = {
            user: items
            for user in range(30)
            if (items := [item for item in task.relevant[user].tolist() if labels[item] == name])
        }
        part = found.pop(f"label: {name}", None)
        assert (part is None) == (len(wanted) < 5)
        if part is not None:
            assert {user: part.relevant[place].tolist() for place, user in enumerate(part.rows.tolist())} == wanted
    assert not found


def test_cold_items_are_an_item_slice(make_task):
    task = random_task(make_task, 3)
    cold, labelled = slices_of(task)[1], item_slices(task, "cold", np.where(task.cold_N, "yes", ""))[0]
    assert labelled.rows.tolist() == cold.rows.tolist()
    assert labelled.relevant.values.tolist() == cold.relevant.values.tolist()


def test_labels_of_any_kind_in_the_order_of_their_numbers(make_task):
    task = make_task([[0]] * 30, 2)
    for labels in (np.repeat([10, 9, 2], 10), [f"decile {n}" for n in (10, 9, 2) for _ in range(10)]):
        names = [part.name.split()[-1] for part in user_slices(task, "x", labels)]
        assert names == ["2", "9", "10"]
    numbers = np.repeat([np.nan, 1.5, 0.5], 10)
    assert [(part.name, part.rows[0]) for part in user_slices(task, "x", numbers)] == [("x: 0.5", 20), ("x: 1.5", 10)]


def test_wrong_numbers_of_labels_are_refused(make_task):
    task = make_task([[0]] * 7, 2)
    with pytest.raises(UserError, match="new: evaluated users: 6 labels were given for 7"):
        user_slices(task, "new", ["yes"] * 6)
    with pytest.raises(UserError, match="genre: items: 7 labels were given for 2"):
        item_slices(task, "genre", ["yes"] * 7)


@given(lengths=st.lists(st.integers(0, 200), max_size=20))
@settings(max_examples=60, deadline=None)
def test_lengths_lie_in_their_ranges(lengths):
    for length, label in zip(lengths, length_labels(lengths), strict=True):
        first, _, last = label.partition("-")
        assert int(first) <= length <= (int(last) if last else length if "-" in label else 0)


def test_deciles_hold_a_tenth_of_the_warm_items_each(make_task):
    cold_N = np.arange(60) >= 50
    task = make_task([[0]], 60, cold_N=cold_N, popularity_N=np.arange(60) * ~cold_N)
    labels = decile_labels(task)
    assert labels[50:] == [""] * 10
    assert labels[:50] == [f"decile {item // 5 + 1}" for item in range(50)]


def test_equally_popular_items_share_a_decile(make_task):
    task = make_task([[0]], 20, popularity_N=np.arange(20) // 10 * 7)
    assert decile_labels(task) == ["decile 3"] * 10 + ["decile 8"] * 10
    assert decile_labels(make_task([[0]], 3, cold_N=np.ones(3, bool))) == [""] * 3


def test_patterns_of_modalities(rng):
    present_NM = rng.random((50, 3)) < 0.5
    names = ["text", "vision", "audio"]
    expected = ["+".join(n for n, p in zip(names, row, strict=True) if p) or "none" for row in present_NM.tolist()]
    assert present_labels(present_NM, names) == expected


def test_candidates_by_name(make_task):
    cold_N, candidates_N = np.array([0, 0, 1, 1], bool), np.array([1, 1, 1, 0], bool)
    whole, _, among = slices_of(make_task([[0, 2]], 4, cold_N=cold_N, candidates_N=candidates_N))
    assert (whole.candidates, whole.candidates_N.tolist()) == ("some", [True, True, True, False])
    assert (among.candidates, among.candidates_N.tolist()) == ("cold", [False, False, True, False])


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_region_equals_a_loop(make_task, seed):
    rng = np.random.default_rng(seed)
    task = random_task(make_task, seed)
    region = [tuple(rng.permutation(["EU", "UK", "US"])[: rng.integers(0, 3)]) for _ in range(15)]
    kind = rng.choice(["film", "series"], 15).tolist()
    allowed = [bool({"EU", "UK"} & set(region[item])) and kind[item] == "film" for item in range(15)]
    wanted = {user: items for user in range(30) if (items := [i for i in task.relevant[user].tolist() if allowed[i]])}
    asked = {"region": ["EU", "UK"], "kind": ["film"]}, {"region": region, "kind": kind}
    if not wanted:
        with pytest.raises(UserError, match="must include a held-out item; .* none is one of the test split"):
            candidate_slice(task, *asked)
        return
    part = candidate_slice(task, *asked)
    assert (part.name, part.candidates, part.group) == ("region=EU|UK, kind=film",) * 2 + ("",)
    assert part.candidates_N.tolist() == allowed
    assert {user: part.relevant[place].tolist() for place, user in enumerate(part.rows.tolist())} == wanted


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_target_slices_equal_a_loop(make_task, seed):
    task = random_task(make_task, seed)
    labels = np.random.default_rng(seed).choice(["0-1", "1-7", ""], len(task.relevant.values)).tolist()
    found = {part.name: part for part in target_slices(task, "days", labels)}
    for name in ("0-1", "1-7"):
        wanted = {}
        for user in range(30):
            start = int(task.relevant.starts[user])
            if items := [i for j, i in enumerate(task.relevant[user].tolist()) if labels[start + j] == name]:
                wanted[user] = items
        part = found.pop(f"days: {name}", None)
        assert (part is None) == (len(wanted) < 5)
        if part is not None:
            assert {user: part.relevant[place].tolist() for place, user in enumerate(part.rows.tolist())} == wanted
    assert not found


def test_a_row_of_several_labels_is_in_the_slice_of_each(make_task):
    task = make_task([[0], [1]] * 5, 2)
    found = {part.name: part.rows.tolist() for part in item_slices(task, "genre", [("a", "b"), ("b",)])}
    assert found == {"genre: a": [0, 2, 4, 6, 8], "genre: b": list(range(10))}
