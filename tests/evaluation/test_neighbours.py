"""Each against the definition, written as loops."""

import numpy as np
import pytest
import torch

from avrec.evaluation import neighbours
from avrec.evaluation.neighbours import SimilarityScorer, content_knn, content_vectors, ease, item_knn
from avrec.ranking_task import Ragged

USERS, ITEMS = 40, 12


@pytest.fixture
def histories(rng):
    return [rng.integers(0, ITEMS, rng.integers(0, 9)).tolist() for _ in range(USERS)]


def matrix(histories):
    return np.array([[float(item in history) for item in range(ITEMS)] for history in histories])


@pytest.mark.parametrize("cells", [3 * ITEMS, 2**25])
def test_item_knn(histories, monkeypatch, cells):
    monkeypatch.setattr(neighbours, "_CELLS", cells)
    x = matrix(histories)
    found = item_knn(Ragged.of(histories), ITEMS, neighbours=4, shrink=2.0)
    for j in range(ITEMS):
        cosine = [x[:, i] @ x[:, j] / (np.sqrt(x[:, i].sum() * x[:, j].sum()) + 2.0) for i in range(ITEMS)]
        cosine[j] = 0.0
        kept = sorted(cosine, reverse=True)[:4]
        expected = [value if value >= kept[-1] else 0.0 for value in cosine]
        assert found[:, j].sort().values.tolist() == pytest.approx(sorted([*kept, *[0.0] * (ITEMS - 4)]), abs=1e-6)
        if np.count_nonzero(np.isclose(cosine, kept[-1])) == 1:
            np.testing.assert_allclose(found[:, j], expected, atol=1e-6)


def test_ease_is_the_best_ridge_regression_without_the_item_itself(histories):
    x, weights = matrix(histories), ease(Ragged.of(histories), ITEMS, regularisation=3.0)
    for j in range(ITEMS):
        others = np.delete(np.arange(ITEMS), j)
        gram = x[:, others].T @ x[:, others] + 3.0 * np.eye(ITEMS - 1)
        np.testing.assert_allclose(weights[others, j], np.linalg.solve(gram, x[:, others].T @ x[:, j]), atol=1e-5)
        assert weights[j, j] == 0


def test_scores_are_sums_over_the_history(histories, rng):
    similarity = torch.from_numpy(rng.normal(size=(ITEMS, ITEMS)).astype(np.float32))
    found = SimilarityScorer(Ragged.of(histories), similarity)(np.array([7, 0, 3]))
    for row, user in zip(found, (7, 0, 3), strict=True):
        expected = sum((similarity[item] for item in histories[user]), torch.zeros(ITEMS))
        torch.testing.assert_close(row, expected)


def test_content_knn_is_the_mean_of_cosines(histories, rng):
    text, sound = rng.normal(size=(ITEMS, 5)) + 3, rng.normal(size=(ITEMS, 3)) - 1
    present = {"text": rng.random(ITEMS) < 0.8, "sound": rng.random(ITEMS) < 0.5}
    known = rng.random(ITEMS) < 0.7
    given = [(torch.from_numpy(v), p) for v, p in zip((text, sound), present.values(), strict=True)]
    scorer = content_knn(content_vectors(given, known).float(), Ragged.of(histories))
    found = scorer(np.arange(USERS))
    centred = [v - v[p & known].mean(0) for v, p in zip((text, sound), present.values(), strict=True)]
    for user, history in enumerate(histories):
        for j in range(ITEMS):
            cosines = [
                v[i] @ v[j] / np.linalg.norm(v[i]) / np.linalg.norm(v[j]) * p[i] * p[j]
                for v, p in zip(centred, present.values(), strict=True)
                for i in history
            ]
            assert float(found[user, j]) == pytest.approx(sum(cosines) / max(1, len(history)), abs=1e-5)
