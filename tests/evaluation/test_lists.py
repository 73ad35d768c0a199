"""Metrics without relevant items, each against its formula written as loops."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.errors import UserError
from avrec.evaluation.list_metrics import coverage_at_k, diversity_at_k, novelty_at_k, popularity_at_k


@st.composite
def lists(draw):
    """Lists of distinct candidates, none empty, some short; few distinct popularities; some vectors of zeros."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    items, k = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    candidates_N = rng.random(items) < 0.7
    candidates_N[rng.integers(items)] = True
    allowed = np.flatnonzero(candidates_N)
    rows = [rng.permutation(allowed)[: rng.integers(1, k + 1)] for _ in range(draw(st.integers(1, 8)))]
    top_EK = np.array([np.append(row, [-1] * k)[:k] for row in rows], dtype=np.int64)
    return top_EK, candidates_N, rng.integers(0, 4, items), rng.normal(size=(items, 3)) * (rng.random((items, 1)) < 0.8)


def kept(top_EK):
    return [[item for item in row if item >= 0] for row in top_EK.tolist()]


@given(question=lists())
@settings(max_examples=150, deadline=None)
def test_equal_their_formulas(question):
    top_EK, candidates_N, popularity_N, _ = question
    rows, candidates = kept(top_EK), np.flatnonzero(candidates_N).tolist()
    found = {item for row in rows for item in row}
    assert coverage_at_k(top_EK, candidates_N) == pytest.approx(len(found) / len(candidates))

    share = [(count + 1) / (popularity_N.sum() + len(popularity_N)) for count in popularity_N.tolist()]
    assert sum(share) == pytest.approx(1)
    surprise = [np.mean([-math.log2(share[item]) for item in row]) for row in rows]
    assert novelty_at_k(top_EK, popularity_N) == pytest.approx(surprise)

    def percentile(item):
        own = popularity_N[item]
        below, same = (sum(test(popularity_N[c], own) for c in candidates) for test in (np.less, np.equal))
        return (below + same / 2) / len(candidates)

    expected = [np.mean([percentile(item) for item in row]) for row in rows]
    assert popularity_at_k(top_EK, popularity_N, candidates_N) == pytest.approx(expected)


@given(question=lists())
@settings(max_examples=150, deadline=None)
def test_diversity_equals_its_formula(question):
    top_EK, *_, item_ND = question

    def cosine(a, b):
        norms = np.linalg.norm(item_ND[a]) * np.linalg.norm(item_ND[b])
        return item_ND[a] @ item_ND[b] / norms if norms else 0.0

    expected = [
        np.mean([1 - cosine(*pair) for pair in combinations(r, 2)]) if len(r) > 1 else 0.0 for r in kept(top_EK)
    ]
    assert diversity_at_k(top_EK, item_ND) == pytest.approx(expected, abs=1e-12)


def test_what_each_is_for():
    popularity_N, candidates_N = np.arange(100.0), np.ones(100, bool)
    same, other = np.tile(np.arange(90, 100), (10, 1)), np.arange(100).reshape(10, 10)
    assert coverage_at_k(same, candidates_N) == 0.1
    assert coverage_at_k(other, candidates_N) == 1
    assert novelty_at_k(same, popularity_N)[0] < novelty_at_k(other, popularity_N)[0]
    assert popularity_at_k(same, popularity_N, candidates_N) == pytest.approx(0.95)
    assert popularity_at_k(other, popularity_N, candidates_N).mean() == pytest.approx(0.5)


def test_a_list_at_random_has_half_the_popularity_however_tied(rng):
    popularity_N = rng.integers(0, 3, 50)
    everything = np.arange(50)[None]
    assert popularity_at_k(everything, popularity_N, np.ones(50, bool)) == pytest.approx([0.5])


def test_coverage_counts_candidates_only():
    assert coverage_at_k(np.array([[0, 3]]), np.array([True, True, False, False])) == 0.5
    with pytest.raises(UserError, match="no candidates"):
        coverage_at_k(np.array([[0]]), np.zeros(3, bool))


def test_empty_lists_are_refused():
    top_EK = np.array([[0, 1], [-1, -1]])
    with pytest.raises(UserError, match=r"1 of 2 lists are empty \(the first is row 1\)"):
        novelty_at_k(top_EK, np.ones(2))
    with pytest.raises(UserError, match="lists are empty"):
        popularity_at_k(top_EK, np.ones(2), np.ones(2, bool))
