import numpy as np
import pytest
import torch

from avrec.evaluation.baselines import PopularityScorer, RandomScorer, ScoreMatrixScorer
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.ranking import top_k


def test_popularity_ranks_the_same_for_all_but_the_seen(make_task):
    task = make_task([[0], [0]], 4, [[], [3]], popularity_N=np.array([1.0, 5.0, 1.0, 9.0]))
    assert top_k(PopularityScorer(task.popularity_N), task, 4).tolist() == [[3, 1, 0, 2], [1, 0, 2, -1]]
    assert task.popularity_N.tolist() == [1.0, 5.0, 1.0, 9.0]


def test_random_is_fixed_per_user_and_item(make_task):
    task = make_task([[0]] * 40, 60)
    scorer = RandomScorer(task, 60, seed=3)
    scores = scorer(np.arange(40))
    assert torch.equal(scorer(np.array([17, 2])), scores[[17, 2]])
    other_order = make_task([[0]] * 40, 60, user_index_E=task.user_index_E[::-1].copy())
    assert torch.equal(RandomScorer(other_order, 60, seed=3)(np.arange(40)), scores.flip(0))
    assert torch.equal(RandomScorer(task, 30, seed=3)(np.arange(40)), scores[:, :30])
    assert not torch.equal(RandomScorer(task, 60, seed=4)(np.arange(40)), scores)


def test_random_scores_are_uniform_and_unrelated(make_task):
    scores = RandomScorer(make_task([[0]] * 400, 500), 500, seed=-1)(np.arange(400)).numpy()
    assert scores.min() >= 0
    assert scores.max() < 1
    counts = np.histogram(scores, bins=20, range=(0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 50  # chi-square, 19 degrees: p < 0.0002
    assert abs(np.corrcoef(scores)[np.triu_indices(400, 1)]).max() < 0.25
    assert abs(np.corrcoef(scores.T)[np.triu_indices(500, 1)]).max() < 0.27


def test_random_finds_what_chance_finds(make_task):
    task = make_task([[user % 50, 50] for user in range(1000)], 100)
    found = {r.metric: r for r in evaluate("random", RandomScorer(task, 100), task, ks=(10,))}
    assert found["recall@10"].low < 0.1 < found["recall@10"].high


def test_score_matrix_takes_arrays_tensors_and_functions(make_task):
    scores = np.random.default_rng(0).random((6, 9))
    rows = np.array([4, 1])
    for given in (scores, torch.from_numpy(scores), lambda rows: scores[rows]):
        assert torch.equal(ScoreMatrixScorer(given)(rows), torch.from_numpy(scores[rows]))
    with pytest.raises(ValueError, match=r"shape \(9,\)"):
        ScoreMatrixScorer(scores[0])
