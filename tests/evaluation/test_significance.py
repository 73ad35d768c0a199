from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.evaluation import significance
from avrec.evaluation.significance import bootstrap_interval, bootstrap_intervals, holm, paired_test

TENTHS = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


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


@given(tenths=TENTHS)
@settings(max_examples=60, deadline=None)
def test_p_of_few_users_is_that_of_all_sign_flips(tenths):
    flips = [
        abs(sum(sign * value for sign, value in zip(signs, tenths, strict=True)))
        for signs in product((1, -1), repeat=len(tenths))
    ]
    expected = np.mean([flip >= abs(sum(tenths)) for flip in flips])
    # Tenths are not exact in binary: sums that are equal by hand must not be rounded apart.
    assert paired_test(np.array(tenths) / 10, np.zeros(len(tenths))).p == pytest.approx(expected)


def test_p_of_many_users_is_near_that_of_all_sign_flips(monkeypatch):
    differences = np.random.default_rng(0).normal(0.3, 1, 13)
    exact = paired_test(differences, np.zeros(13)).p
    monkeypatch.setattr(significance, "FLIPS", 8000)
    drawn = paired_test(differences, np.zeros(13)).p
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 8000))


def test_p_agrees_with_the_t_test_of_many_users():
    for shift in (0.0, 0.03, 0.06):
        differences = np.random.default_rng(1).normal(shift, 1, 3000)
        t = abs(differences.mean()) / (differences.std(ddof=1) / np.sqrt(3000))
        tail = 1 - np.mean(np.abs(np.random.default_rng(2).normal(size=400_000)) < t)
        assert paired_test(differences, np.zeros(3000)).p == pytest.approx(tail, abs=0.02)


def test_equal_models_are_found_to_differ_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    p = [paired_test(rng.random(40) < 0.4, rng.random(40) < 0.4).p for _ in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.09
    assert min(p) > 0


def test_paired_test_is_symmetric_and_deterministic():
    a, b = np.random.default_rng(0).random((2, 100))
    one, other = paired_test(a, b, seed=3), paired_test(b, a, seed=3)
    assert one == paired_test(a, b, seed=3)
    assert (one.difference, one.p) == (-other.difference, other.p)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert (one.low, one.high) == bootstrap_interval(a - b, seed=3)
    assert one.low < one.difference < one.high


def test_blocks_of_flips_change_little_and_never_zero(monkeypatch):
    a, b = np.random.default_rng(0).random((2, 64)) + np.array([[0.05], [0]])
    whole = paired_test(a, b).p
    monkeypatch.setattr(significance, "_DRAWS", 64 * 8)
    assert paired_test(a, b).p == pytest.approx(whole, abs=0.02)
    assert paired_test(a + 9, b).p == 1 / (significance.FLIPS + 1)


def test_paired_test_of_the_same_values_and_misfits():
    assert paired_test(np.ones(20), np.ones(20)) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(4,\)"):
        paired_test(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="at least one"):
        paired_test([], [])


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_holm_rejects_what_stepping_down_rejects(p):
    for level in (0.01, 0.05, 0.3):
        rejected, rest = set(), sorted(range(len(p)), key=lambda place: p[place])
        while rest and p[rest[0]] * len(rest) <= level:
            rejected.add(rest.pop(0))
        assert set(np.flatnonzero(holm(np.array(p)) <= level).tolist()) == rejected
