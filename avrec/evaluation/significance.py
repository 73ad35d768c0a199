"""Bootstrap intervals of means over users, and paired permutation tests of two models."""

from typing import NamedTuple

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError

SAMPLES = 1000
LEVEL = 0.95
FLIPS = 10_000
_DRAWS = 2_000_000


def bootstrap_interval(
    values_E: Array, seed: int = 0, samples: int = SAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean over users.

    For two models over the same users, pass the differences: they are significant where the interval excludes 0.

    >>> low, high = bootstrap_interval(np.array([0.0, 1.0] * 50))
    >>> low < 0.5 < high
    True

    Args:
        values_E: one number per user.
        seed: of the resampling; the same seed and number of users resample the same users.
        samples: how many times the users are resampled.
        level: the share of resampled means inside the interval, in (0, 1).

    Returns:
        The lower and the upper end.

    Raises:
        UserError: no users, values that are not finite, or settings out of range.

    Reference:
        Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    low_J, high_J = bootstrap_intervals(np.asarray(values_E, dtype=np.float64)[:, None], seed, samples, level)
    return float(low_J[0]), float(high_J[0])


def bootstrap_intervals(
    values_EJ: Array, seed: int = 0, samples: int = SAMPLES, level: float = LEVEL
) -> tuple[Array, Array]:
    """The intervals of several means over the same users, by one resampling shared by all columns.

    Memory is O(E x J) and a bounded block of draws, whatever ``samples`` is. ``values_EJ`` has one row per user and one
    column per mean; the rest is as in ``bootstrap_interval``.

    Returns:
        Lower and upper ends, float64, (J,) each.
    """
    values_EJ = np.asarray(values_EJ, dtype=np.float64)
    users = len(values_EJ)
    if users == 0 or not np.isfinite(values_EJ).all():
        raise UserError(f"{users} users; an interval needs at least one, and a finite value for each.")
    if samples < 1 or not 0 < level < 1:
        raise UserError(f"samples is {samples} and level {level}; allowed are >= 1 and between 0 and 1.")
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS // users)
    means = [
        _counts(generator, min(block, samples - start), users) @ values_EJ / users for start in range(0, samples, block)
    ]
    tail = (1 - level) / 2
    low_J, high_J = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low_J, high_J


class PairedTest(NamedTuple):
    """The mean of the first model minus the second over the same users, and the ends of its bootstrap interval."""

    difference: float
    low: float
    high: float
    p: float
    """How often a difference at least as large, either way, would come up were the two models interchangeable."""


def paired_test(a_E: Array, b_E: Array, seed: int = 0) -> PairedTest:
    """Compare two models over the same users: a two-sided permutation test, and the interval of the difference.

    Were the models interchangeable, each user's difference could as well have the other sign. ``p`` is the share of
    sign flips whose mean is at least as far from 0 as the observed one: of all flips where there are at most 10,000
    of them, else of 10,000 drawn ones and the observed one (so that p is never 0 and the test keeps its level).
    Assumes nothing of the values' distribution; it does take users as independent. ``a_E`` and ``b_E`` have one
    number per user, of the same users in the same order.

    >>> better = paired_test(np.arange(12) + 1.0, np.arange(12))
    >>> better.difference, better.p == 2 / 2**12
    (1.0, True)

    Raises:
        UserError: no users, not the same number of them, or values that are not finite.

    Reference:
        Smucker, Allan & Carterette, A comparison of statistical significance tests for information retrieval
        evaluation (CIKM 2007); the observed one counts among the drawn: Phipson & Smyth, Permutation p-values should
        never be zero (2010).
    """
    a_E, b_E = np.asarray(a_E, dtype=np.float64), np.asarray(b_E, dtype=np.float64)
    if a_E.shape != b_E.shape or a_E.ndim != 1:
        raise UserError(
            f"the two models have values of shapes {a_E.shape} and {b_E.shape}; a paired test needs one number of "
            "each for the same users, in the same order."
        )
    low, high = bootstrap_interval(a_E - b_E, seed)
    return PairedTest(float((a_E - b_E).mean()), low, high, _sign_flip(a_E - b_E, seed))


def holm(p_J: Array) -> Array:
    """p-values corrected for how many questions were asked at once: each may be read against the level on its own.

    ``corrected(j-th smallest of m) = max over i <= j of min(1, (m - i + 1) * p(i))``

    >>> holm(np.array([0.01, 0.04, 0.03])).round(4).tolist()
    [0.03, 0.06, 0.06]

    Reference:
        Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    p_J = np.asarray(p_J, dtype=np.float64)
    order_J = np.argsort(p_J, kind="stable")
    corrected_J = np.empty_like(p_J)
    corrected_J[order_J] = np.maximum.accumulate(p_J[order_J] * np.arange(len(p_J), 0, -1)).clip(max=1.0)
    return corrected_J


def _sign_flip(difference_E: Array, seed: int) -> float:
    # A difference of 0 has no sign to flip.
    difference_E = difference_E[difference_E != 0]
    users = len(difference_E)
    # Equal sums may be rounded apart where they are added in another order.
    reached = abs(difference_E.sum()) - 1e-12 * np.abs(difference_E).sum()
    if users < FLIPS.bit_length():
        flipped = (np.arange(2**users)[:, None] >> np.arange(users)) & 1
        return float(_as_far(flipped, difference_E, reached) / len(flipped))
    # Not the bootstrap's own draws.
    generator = np.random.default_rng([seed, FLIPS])
    block, far = max(1, _DRAWS // users), 0
    for start in range(0, FLIPS, block):
        flips = min(block, FLIPS - start)
        bits = np.unpackbits(generator.integers(0, 256, (flips, -(-users // 8)), dtype=np.uint8), axis=1)
        far += _as_far(bits[:, :users], difference_E, reached)
    return (far + 1) / (FLIPS + 1)


def _as_far(flipped_JE: Array, difference_E: Array, reached: float) -> int:
    """How many of the flips have a sum at least as far from 0."""
    sums_J = difference_E.sum() - 2.0 * (flipped_JE.astype(np.float64) @ difference_E)
    return int((np.abs(sums_J) >= reached).sum())


def _counts(generator: np.random.Generator, samples: int, users: int) -> Array:
    """How often each user is drawn in each of the samples, float64, (samples, users)."""
    drawn = generator.integers(0, users, size=(samples, users))
    drawn += np.arange(samples)[:, None] * users
    return np.bincount(drawn.ravel(), minlength=samples * users).reshape(samples, users).astype(np.float64)
