import numpy as np
import pytest

from avrec.evaluation import significance
from avrec.evaluation.significance import bootstrap_interval, bootstrap_intervals


def test_deterministic_and_moved_by_the_seed():
    values = np.random.default_rng(0).random(200)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_equals_resampling_in_a_loop():
    values = np.random.default_rng(0).random(30)
    drawn = np.random.default_rng(5).integers(0, 30, size=(100, 30))
    means = [np.mean([values[user] for user in sample]) for sample in drawn]
    expected = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values, seed=5, samples=100, level=0.9) == pytest.approx(expected, abs=1e-12)


def test_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.random(100) < 0.3, samples=400)
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)


def test_columns_share_one_resampling_and_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(0).random((70, 3))
    low, high = bootstrap_intervals(np.column_stack([values, values[:, 0]]))
    assert low[3] == low[0]
    assert high[3] == high[0]
    monkeypatch.setattr(significance, "_DRAWS", 200)
    again_low, again_high = bootstrap_intervals(np.column_stack([values, values[:, 0]]))
    np.testing.assert_allclose([again_low, again_high], [low, high], rtol=1e-12)


def test_one_user_and_a_constant():
    assert bootstrap_interval(np.array([0.25])) == (0.25, 0.25)
    assert bootstrap_interval(np.full(64, 0.5)) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "settings"),
    [([], {}), ([np.nan], {}), ([1.0], {"samples": 0}), ([1.0], {"level": 95}), ([1.0], {"level": 0})],
)
def test_refused(values, settings):
    with pytest.raises(ValueError, match="interval needs at least one|allowed are"):
        bootstrap_interval(np.array(values), **settings)
