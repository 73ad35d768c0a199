"""Health: each number against its definition, and a warning for each illness."""

import math

import numpy as np
import pytest
import torch

from avrec.batch import UserError
from avrec.evaluation import health
from avrec.evaluation.health import alignment, effective_rank, health_of, uniformity, warnings_of


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
