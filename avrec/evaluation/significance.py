"""How far a mean over users may be off, by resampling the users."""

import numpy as np

from avrec.batch import Array, UserError

SAMPLES = 1000
LEVEL = 0.95
_DRAWS = 2_000_000


def bootstrap_interval(
    values_E: Array, seed: int = 0, samples: int = SAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean over users.

    To compare two models over the same users, give the differences: an interval without 0 is a difference that
    resampling the users does not undo.

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

    Memory is O(E x J) and a bounded block of draws, whatever ``samples`` is.

    Args:
        values_EJ: one row per user, one column per mean.
        seed: of the resampling.
        samples: how many times the users are resampled.
        level: the share of resampled means inside the interval, in (0, 1).

    Returns:
        Lower and upper ends, float64, (J,) each.

    Raises:
        UserError: no users, values that are not finite, or settings out of range.
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


def _counts(generator: np.random.Generator, samples: int, users: int) -> Array:
    """How often each user is drawn in each of the samples, float64, (samples, users)."""
    drawn = generator.integers(0, users, size=(samples, users))
    drawn += np.arange(samples)[:, None] * users
    return np.bincount(drawn.ravel(), minlength=samples * users).reshape(samples, users).astype(np.float64)
