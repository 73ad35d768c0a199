"""Every metric against torchmetrics, from the same scores: ties, several relevant items, short lists."""

import numpy as np
import pytest
import torch
from torchmetrics.functional import retrieval

from avrec.evaluation.baselines import ScoreMatrixScorer
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import find_hits, top_k

USERS, ITEMS = 1200, 24
KS = (1, 3, 10, 30)
THEIRS = {
    "recall": retrieval.retrieval_recall,
    "ndcg": retrieval.retrieval_normalized_dcg,
    "mrr": retrieval.retrieval_reciprocal_rank,
    "hit_rate": retrieval.retrieval_hit_rate,
    "map": retrieval.retrieval_average_precision,
}


@pytest.fixture
def in_float64(monkeypatch):
    """torchmetrics has float32 written into its functions; digits beyond it need another."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def question(make_task):
    """Users with 1 to 8 relevant items, few distinct scores, and 4 to 24 candidates left by the seen filter."""
    rng = np.random.default_rng(0)
    order_EN = rng.permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1)
    relevant = [row[: rng.integers(1, 9)].tolist() for row in order_EN]
    seen = [row[rng.integers(len(own) + 3, ITEMS + 1) :].tolist() for row, own in zip(order_EN, relevant, strict=True)]
    levels_E = rng.choice([1, 2, 5, 1000], USERS)
    scores_EN = rng.integers(0, levels_E[:, None], (USERS, ITEMS)).astype(np.float64)
    return make_task(relevant, ITEMS, seen), scores_EN


def in_order(task, scores_EN):
    """Per user, whether the item is relevant, best first, ties by item index: by Python's sort."""
    for user, scores in enumerate(scores_EN.tolist()):
        candidates = set(range(ITEMS)) - set(task.seen[user].tolist())
        best_first = sorted(candidates, key=lambda item, scores=scores: (-scores[item], item))
        yield torch.from_numpy(np.isin(best_first, task.relevant[user]))


def test_the_question_has_what_it_is_to_test(question):
    task, scores_EN = question
    lengths = ITEMS - np.diff(task.seen.starts)
    assert lengths.min() < 10 < lengths.max() < max(KS)
    assert any(len(set(row)) == 1 for row in scores_EN.tolist())
    assert set(np.diff(task.relevant.starts).tolist()) == set(range(1, 9))


@pytest.mark.parametrize("name", METRICS)
def test_agrees_with_torchmetrics(name, question, in_float64):
    task, scores_EN = question
    hits_EK = find_hits(top_k(ScoreMatrixScorer(scores_EN), task, max(KS)), task.relevant, ITEMS)
    relevant_E = np.diff(task.relevant.starts)
    # Where torchmetrics divides by the hits found, avrec divides by those there could be.
    found_EK = hits_EK.cumsum(axis=1)
    targets = list(in_order(task, scores_EN))
    for k in KS:
        values = [THEIRS[name](len(t) - torch.arange(len(t), dtype=torch.float64), t, top_k=k) for t in targets]
        expected_E = torch.stack(values).numpy()
        if name == "map":
            expected_E = expected_E * found_EK[:, k - 1] / np.minimum(relevant_E, k)
        assert abs(METRICS[name](hits_EK[:, :k], relevant_E) - expected_E).max() <= 1e-9


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_ranking_scores_one(name, question):
    task, _ = question
    scores_EN = np.zeros((USERS, ITEMS))
    for user in range(USERS):
        scores_EN[user, task.relevant[user]] = 1
    hits_EK = find_hits(top_k(ScoreMatrixScorer(scores_EN), task, 10), task.relevant, ITEMS)
    for k in (8, 10):
        assert (METRICS[name](hits_EK[:, :k], np.diff(task.relevant.starts)) == 1).all()
