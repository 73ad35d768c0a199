import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.evaluation.metrics import METRICS

ONE_USER = st.lists(st.booleans(), min_size=1, max_size=12).filter(any)


def naive(name, ranked, k):
    """The textbook formula over a whole ranked list of booleans."""
    ranks = [rank for rank, hit in enumerate(ranked[:k], start=1) if hit]
    relevant = sum(ranked)
    if name == "recall":
        return len(ranks) / relevant
    if name == "hit_rate":
        return float(len(ranks) > 0)
    if name == "mrr":
        return 1 / ranks[0] if ranks else 0.0
    if name == "map":
        return sum(sum(ranked[:rank]) / rank for rank in ranks) / min(k, relevant)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, relevant) + 1))
    return sum(1 / math.log2(rank + 1) for rank in ranks) / ideal


@pytest.mark.parametrize("name", METRICS)
@given(ranked=ONE_USER, k=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_equals_formula(name, ranked, k):
    hits_BK = np.array([ranked[:k]])
    value = METRICS[name](hits_BK, [sum(ranked)])
    assert value.dtype == np.float64
    assert value == pytest.approx([naive(name, ranked, hits_BK.shape[1])], abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_list_is_exactly_one(name):
    for relevant in range(1, 40):
        hits = np.arange(40)[None] < relevant
        assert METRICS[name](hits, [relevant])[0] == 1.0


def test_ndcg_of_more_relevant_than_places_is_one_when_all_places_hit():
    assert METRICS["ndcg"](np.ones((1, 10), bool), [25])[0] == 1.0


@pytest.mark.parametrize("name", METRICS)
def test_users_without_relevant_items_are_refused(name):
    with pytest.raises(ValueError, match=r"1 of 2 users have no relevant item \(the first is row 1\)"):
        METRICS[name](np.zeros((2, 3), bool), [1, 0])


def test_impossible_input_is_refused():
    with pytest.raises(ValueError, match="row 0 has 2 hits but 1 relevant"):
        METRICS["recall"]([[1, 1]], [1])
    with pytest.raises(ValueError, match="shape"):
        METRICS["recall"]([1, 1], [1])
