import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.evaluation.baselines import ScoreMatrixScorer
from avrec.evaluation.ranking import EmbeddingScorer, find_hits, top_k
from avrec.ranking_task import Ragged


def naive_top_k(scores_EN, task, k, candidates_N):
    rows = []
    for user, scores in enumerate(scores_EN.tolist()):
        seen = set(task.seen[user].tolist()) if task.seen_filter else set()
        items = [item for item in range(len(scores)) if candidates_N[item] and item not in seen]
        best = sorted(items, key=lambda item: (-scores[item], item))[:k]
        rows.append(best + [-1] * (k - len(best)))
    return np.array(rows, dtype=np.int64).reshape(len(rows), k)


@st.composite
def questions(draw):
    users, items = draw(st.integers(1, 7)), draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = np.array(draw(st.sampled_from([[0.0], [0, 1], [0, 1, 2, 3], [-math.inf, 0, 1], [-1, 0, math.inf]])))
    scores = rng.choice(levels, (users, items)).astype(np.float32)
    if draw(st.booleans()):
        scores += rng.random((users, items), dtype=np.float32) * (rng.random((users, items)) < 0.5)
    seen = [rng.choice(items, rng.integers(0, items + 1)).tolist() for _ in range(users)]
    candidates = rng.random(items) < draw(st.sampled_from([0.2, 0.7, 1.1]))
    return scores, seen, candidates, draw(st.booleans()), draw(st.integers(1, 30)), draw(st.integers(1, 9))


@given(question=questions(), override=st.booleans())
@settings(max_examples=300, deadline=None)
def test_equals_sorting_by_score_and_index(make_task, question, override):
    scores, seen, candidates, seen_filter, k, chunk = question
    task = make_task([[0]] * len(scores), scores.shape[1], seen, seen_filter=seen_filter)
    if not override:
        task = dataclasses.replace(task, candidates_N=candidates)
    scorer = ScoreMatrixScorer(scores)
    found = top_k(scorer, task, k, chunk, candidates_N=candidates if override else None)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, naive_top_k(scores, task, k, candidates))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_scores_of_other_types(make_task, dtype):
    scores = torch.randint(0, 5, (20, 50), generator=torch.Generator().manual_seed(0)).to(dtype)
    task = make_task([[0]] * 20, 50)
    expected = naive_top_k(scores.double(), task, 7, task.candidates_N)
    np.testing.assert_array_equal(top_k(ScoreMatrixScorer(scores), task, 7), expected)


def test_embedding_scorer_does_not_depend_on_the_chunk(make_task):
    generator = torch.Generator().manual_seed(1)
    query, item = torch.randn(301, 48, generator=generator), torch.randn(157, 48, generator=generator)
    scorer = EmbeddingScorer(query, item)
    scores = scorer(np.arange(301))
    torch.testing.assert_close(scores, query @ item.T)
    for rows in (np.array([7]), np.arange(100, 300), np.array([300, 5, 128, 5, 0]), np.arange(256, 301)):
        assert torch.equal(scorer(rows), scores[rows])
    task = make_task([[0]] * 301, 157)
    whole = top_k(scorer, task, 157, chunk=512)
    for chunk in (1, 37, 128, 300):
        np.testing.assert_array_equal(top_k(scorer, task, 157, chunk=chunk), whole)


def test_seen_items_only_where_filtered(make_task):
    scores = ScoreMatrixScorer(np.array([[3.0, 2.0, 1.0]]))
    assert top_k(scores, make_task([[2]], 3, [[0]]), 2).tolist() == [[1, 2]]
    assert top_k(scores, make_task([[2]], 3, [[0]], seen_filter=False), 2).tolist() == [[0, 1]]


def test_the_scores_given_are_not_overwritten(make_task):
    scores = np.ones((2, 3))
    views = ScoreMatrixScorer(lambda rows: scores[rows[0] : rows[-1] + 1])
    assert top_k(views, make_task([[2]] * 2, 3, [[0], [1]]), 2).tolist() == [[1, 2], [0, 2]]
    assert (scores == 1).all()


def test_nan_is_refused_by_name(make_task):
    scores = np.zeros((9, 5))
    scores[6, 3] = np.nan
    with pytest.raises(ValueError, match="score of item 3 for evaluated user 6 is NaN"):
        top_k(ScoreMatrixScorer(scores), make_task([[0]] * 9, 5), 2, chunk=4)
    only_even = np.array([True, False, True, False, True])
    assert top_k(ScoreMatrixScorer(scores), make_task([[0]] * 9, 5), 2, 4, only_even)[6].tolist() == [0, 2]


def test_misfits_are_refused(make_task):
    task = make_task([[0]] * 2, 5)
    with pytest.raises(ValueError, match=r"it must be \(2, 5\)"):
        top_k(ScoreMatrixScorer(np.zeros((2, 4))), task, 2)
    with pytest.raises(ValueError, match="k is 0"):
        top_k(ScoreMatrixScorer(np.zeros((2, 5))), task, 0)
    with pytest.raises(ValueError, match="the catalogue's is"):
        top_k(ScoreMatrixScorer(np.zeros((2, 5))), task, 1, candidates_N=np.ones(4, bool))
    with pytest.raises(ValueError, match="same D"):
        EmbeddingScorer(torch.zeros(2, 3), torch.zeros(5, 4))


def test_no_users(make_task):
    assert top_k(ScoreMatrixScorer(np.zeros((0, 5))), make_task([], 5), 3).shape == (0, 3)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_hits_equal_membership(seed):
    rng = np.random.default_rng(seed)
    users, items, k = rng.integers(1, 6), rng.integers(1, 9), rng.integers(1, 12)
    relevant = [rng.permutation(items)[: rng.integers(0, items + 1)].tolist() for _ in range(users)]
    top = np.stack([np.append(rng.permutation(items), [-1] * k)[:k] for _ in range(users)])
    expected = [[item in chosen for item in ranked] for ranked, chosen in zip(top, relevant, strict=True)]
    np.testing.assert_array_equal(find_hits(top, Ragged.of(relevant), items), expected)
