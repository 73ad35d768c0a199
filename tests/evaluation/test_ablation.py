"""Ablation on a planted model: one modality tells all, one tells nothing."""

import numpy as np
import pytest
import torch

from avrec.evaluation.ablation import ablation
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.ranking import EmbeddingScorer
from avrec.evaluation.results import of_kind


@pytest.fixture
def planted(make_task, rng):
    """Modality 0 points at each user's item; modality 1 is noise of a tenth of its size."""
    items = torch.from_numpy(rng.normal(size=(2, 30, 16)))
    items[0] /= items[0].norm(dim=1, keepdim=True)
    items[1] *= 0.1
    wanted = rng.integers(0, 30, 50)
    asked: list[list[bool]] = []

    def embed(keep_M):
        asked.append(keep_M.tolist())
        return items[0][wanted], (items * torch.from_numpy(keep_M)[:, None, None]).sum(0)

    return embed, make_task([[item] for item in wanted], 30), asked


def test_what_tells_all_is_missed_and_noise_is_not(planted):
    embed, task, asked = planted
    results = ablation(embed, ["text", "audio"], task)
    value = {r.metric if r.kind == "variance_share" else r.model: r.value for r in results}
    assert value["avrec, text alone"] == 1
    assert value["avrec without audio"] == 1
    assert value["avrec without text"] == value["avrec, audio alone"] < 0.5
    assert value["score_variance/text"] + value["score_variance/audio"] == pytest.approx(1)
    assert value["score_variance/text"] > 0.7
    assert asked == [[True, True], [False, True], [True, False], [True, False], [False, True]]


def test_one_modality_has_nothing_to_be_compared_with(planted):
    embed, task, _ = planted
    assert ablation(embed, ["text"], task) == []


def test_variance_is_per_user_so_that_what_shifts_all_scores_carries_none(make_task):
    def embed(keep_M):
        item_ND = torch.eye(4, 5)
        item_ND[:, 4] = float(keep_M[1])  # modality 1 adds the same to every item
        return torch.ones(6, 5), item_ND * np.float32(1 + keep_M[0] * np.arange(4)[:, None] / 4)

    shares = {r.metric: r.value for r in ablation(embed, ["text", "audio"], make_task([[0]] * 6, 4)) if "/" in r.metric}
    assert shares["score_variance/audio"] < shares["score_variance/text"]


def test_the_model_with_something_hidden_is_no_baseline(planted):
    embed, task, _ = planted
    whole = evaluate("avrec", EmbeddingScorer(*embed(np.ones(2, bool))), task, (10,), ("ndcg",))
    ablated = ablation(embed, ["text", "audio"], task)
    results = [*whole, *ablated]
    assert of_kind(results, "main", "slice") == whole
    assert [(r.model, r.modality, r.slice) for r in of_kind(results, "without")] == [
        ("avrec without text", "text", "all"),
        ("avrec without audio", "audio", "all"),
    ]
    assert [(r.model, r.modality, r.slice) for r in of_kind(results, "alone")] == [
        ("avrec, text alone", "text", "all"),
        ("avrec, audio alone", "audio", "all"),
    ]
    shares = of_kind(results, "variance_share")
    assert [(r.metric, r.modality) for r in shares] == [
        ("score_variance/text", "text"),
        ("score_variance/audio", "audio"),
    ]
    assert len(ablated) == 6
