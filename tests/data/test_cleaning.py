"""Cleaning: each step keeps the rows it says."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec.data.cleaning import Cleaning
from avrec.errors import UserError

COLUMNS = {"user": pl.Int64, "item": pl.Int64, "time": pl.Float64, "feedback": pl.Float64}
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=60
)


def rows_of(entries):
    return pl.DataFrame(entries, schema=COLUMNS, orient="row")


def clean(entries, **settings):
    kept, steps = Cleaning(**{"duplicates": "keep", **settings})(rows_of(entries))
    return [tuple(row) for row in kept.iter_rows()], steps


TWICE = [(0, 0, 5, 1), (0, 1, 1, 2), (0, 0, 5, 3), (0, 0, 2, 4)]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, [0, 1, 2, 3]),
        ({"duplicates": "first"}, [0, 1, 3]),
        ({"duplicates": "last"}, [1, 2, 3]),
        ({"repeats": "first"}, [1, 3]),
        ({"repeats": "last"}, [1, 2]),
        ({"min_feedback": 3}, [2, 3]),
        ({"min_feedback": 3, "repeats": "last"}, [2]),
    ],
)
def test_which_rows_stay(settings, left):
    assert clean(TWICE, **settings)[0] == [TWICE[row] for row in left]


def test_sums():
    assert clean(TWICE, duplicates="sum")[0] == [(0, 0, 5, 4), (0, 1, 1, 2), (0, 0, 2, 4)]
    assert clean(TWICE, repeats="sum")[0] == [(0, 1, 1, 2), (0, 0, 2, 8)]


def test_steps_are_counted():
    steps = clean(TWICE, min_feedback=2, repeats="first")[1]
    assert [(step.before, step.after) for step in steps] == [(4, 3), (3, 2)]
    assert clean(TWICE)[1] == []


@given(ROWS, st.integers(0, 4), st.integers(0, 4))
def test_a_core_is_the_largest_set_that_is_dense_enough(entries, min_per_user, min_per_item):
    """Against removing one row at a time until nothing is too rare."""
    left = list(entries)
    while True:
        users, items = (Counter(row[key] for row in left) for key in (0, 1))
        thin = next((row for row in left if users[row[0]] < min_per_user or items[row[1]] < min_per_item), None)
        if thin is None:
            break
        left.remove(thin)
    if not left:
        with pytest.raises(UserError, match=r"data\.clean leaves no interaction \(.*-core: .* Lower its limits"):
            clean(entries, min_per_user=min_per_user, min_per_item=min_per_item)
        return
    kept, _ = clean(entries, min_per_user=min_per_user, min_per_item=min_per_item)
    assert sorted(kept) == sorted(left)


@given(ROWS, st.sampled_from(["first", "last", "sum"]))
def test_one_row_of_each_pair_is_left_and_sums_keep_the_total(entries, policy):
    kept, _ = clean(entries, repeats=policy)
    assert sorted((user, item) for user, item, *_ in kept) == sorted({(user, item) for user, item, *_ in entries})
    if policy == "sum":
        assert sum(row[3] for row in kept) == sum(row[3] for row in entries)


@pytest.mark.parametrize(
    "wrong", [{"duplicates": "newest"}, {"repeats": "no"}, {"min_per_user": -1}, {"min_per_item": -2}]
)
def test_impossible_settings(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=rf"data\.clean\.{name} must be (one of|at least 0).*; got {value}"):
        Cleaning(**wrong)
