"""Health: each number against its definition, and a warning for each illness."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.errors import UserError
from avrec.evaluation import health
from avrec.evaluation.health import (
    alignment,
    calibration,
    drift,
    effective_rank,
    health_of,
    popularity_bias,
    uniformity,
    warnings_of,
)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank):
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q[:rank]
    assert effective_rank(torch.cat([basis, -basis]) * 3) == pytest.approx(rank)


def test_uniformity_and_alignment_are_their_definitions(rng):
    items, queries = (torch.from_numpy(rng.normal(size=(n, 4))) for n in (9, 5))
    unit, asked = (v / v.norm(dim=1, keepdim=True) for v in (items, queries))
    pairs = [(i, j) for i in range(9) for j in range(i)]
    potential = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i, j in pairs]
    assert uniformity(items) == pytest.approx(math.log(sum(potential) / len(potential)))
    user, item = np.array([0, 4, 4]), np.array([8, 1, 0])
    expected = np.mean([float((asked[u] - unit[i]).square().sum()) for u, i in zip(user, item, strict=True)])
    assert alignment(queries, items, user, item) == pytest.approx(expected)
    with pytest.raises(UserError, match="at least one pair"):
        alignment(queries, items, user[:0], item[:0])


def test_a_well_model_gets_no_warning_and_an_ill_one_does(rng):
    well = torch.from_numpy(rng.normal(size=(300, 16)))
    pairs = np.arange(20), np.arange(20)
    assert warnings_of(health_of(well[:50], well, *pairs), 16) == []
    line = torch.outer(torch.from_numpy(rng.normal(size=300)), torch.ones(16, dtype=torch.float64))
    assert "items use 1.0 of 16 dimensions" in warnings_of(health_of(well[:50], line, *pairs), 16)[0]
    said = warnings_of(health_of(well[:50] * 0.1 + 1, well, *pairs), 16)
    assert len(said) == 1
    assert "queries point nearly the same way" in said[0]


def test_large_catalogues_are_sampled(monkeypatch, rng):
    monkeypatch.setattr(health, "SAMPLE", 50)
    vectors = torch.from_numpy(rng.normal(size=(1000, 4)))
    assert uniformity(vectors) == uniformity(vectors[::20])


def test_drift_is_of_each_item_and_of_the_norms():
    before = torch.eye(3)
    assert drift(before, before * 2) == {"item_drift": 0.0, "item_norm_drift": 1.0}
    assert drift(before, -before)["item_drift"] == pytest.approx(2.0)


def calibrated_world(make_task, seed, shift=0.0):
    """Users who choose item j of 40 once with probability σ(score of j) by and large: the scores are log-odds."""
    rng = np.random.default_rng(seed)
    chance_UN = rng.dirichlet(np.full(40, 0.5), 3000)
    chosen = [[int(rng.choice(40, p=row))] for row in chance_UN]
    score_UN = torch.from_numpy(np.log(chance_UN + 1e-9) - np.log1p(-chance_UN + 1e-9))
    return score_UN, torch.eye(40, dtype=torch.float64), shift, make_task(chosen, 40)


def test_probabilities_that_are_kept_are_calibrated(make_task):
    right = calibration(*calibrated_world(make_task, 0))
    assert right["calibration_ratio"] == pytest.approx(1, abs=0.02)
    assert right["calibration_error"] < 0.03
    bold = calibration(*calibrated_world(make_task, 0, shift=2.0))
    assert bold["calibration_ratio"] > 2
    assert bold["calibration_error"] > 0.3
    assert "predicts 5" in warnings_of(bold, 40)[0]


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_calibration_equals_a_loop(make_task, seed):
    rng = np.random.default_rng(seed)
    relevant = [rng.permutation(8)[: rng.integers(1, 4)].tolist() for _ in range(12)]
    seen = [[i for i in range(8) if i not in items and rng.random() < 0.3] for items in relevant]
    candidates_N = rng.random(8) < 0.9
    relevant = [[i for i in items if candidates_N[i]] or [int(np.flatnonzero(candidates_N)[0])] for items in relevant]
    seen = [sorted(set(row) - set(items)) for row, items in zip(seen, relevant, strict=True)]
    task = make_task(relevant, 8, seen, candidates_N=candidates_N)
    query_ED, item_ND = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (12, 8))
    promised, observed = defaultdict(float), defaultdict(float)
    for user in range(12):
        for item in range(8):
            score = float(query_ED[user] @ item_ND[item]) - 1.5
            if candidates_N[item] and item not in seen[user]:
                promised[round(score)] += 1 / (1 + math.exp(-score))
            if item in relevant[user]:
                observed[round(score)] += 1 / len(relevant[user])
    total = sum(promised.values())
    wrong = sum(abs(promised[b] - observed[b]) for b in {*promised, *observed})
    found = calibration(query_ED, item_ND, -1.5, task)
    assert found["calibration_ratio"] == pytest.approx(total / 12)
    assert found["calibration_error"] == pytest.approx(wrong / (total + 12))


def test_popularity_bias_is_seen_and_said(make_task):
    popularity_N = np.arange(20.0)
    task = make_task([[0], [1]], 20, popularity_N=popularity_N)
    found = popularity_bias(torch.ones(2, 1), torch.from_numpy(popularity_N).float()[:, None], task)
    assert found["recommended_popularity"] == pytest.approx(np.mean(np.arange(10, 20) + 0.5) / 20)
    assert found["chosen_popularity"] == pytest.approx(1 / 20)
    assert "recommended items are more popular (percentile 75%)" in warnings_of(found, 64)[0]
