"""Scorers to stand beside the model; they run through the same ranking, masks and metrics."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from avrec.batch import Array
from avrec.errors import UserError
from avrec.ranking_task import RankingTask


class PopularityScorer:
    """The same score for everyone: how many interactions the item has, as far as known when asked."""

    def __init__(self, popularity_N: Array) -> None:
        self.popularity_N = torch.from_numpy(np.asarray(popularity_N, dtype=np.float64))

    def __call__(self, rows: Array) -> torch.Tensor:
        """The popularities, once per user."""
        return self.popularity_N.repeat(len(rows), 1)


class RandomScorer:
    """A pseudo-random score, uniform in [0, 1), fixed by seed, user and item alone: what chance finds."""

    def __init__(self, task: RankingTask, num_items: int, seed: int = 0) -> None:
        users = np.asarray(task.user_index_E).astype(np.uint64)
        self._user_E = _mixed(users + _mixed(np.array([seed], dtype=np.int64).astype(np.uint64)))
        self._item_N = _mixed(np.arange(num_items, dtype=np.uint64) + np.uint64(1 << 40))

    def __call__(self, rows: Array) -> torch.Tensor:
        """The fixed scores of these users."""
        bits_BN = _mixed(self._user_E[rows][:, None] ^ self._item_N)
        # 53 bits are what a float64 in [0, 1) can hold.
        return torch.from_numpy((bits_BN >> np.uint64(11)) * 2.0**-53)


class ScoreMatrixScorer:
    """Scores known from elsewhere: the oracle's true scores, or another library's.

    Args:
        scores: an array or tensor (E, N), or a function from row numbers to scores (B, N).
    """

    def __init__(self, scores: Array | torch.Tensor | Callable[[Array], Any]) -> None:
        if not callable(scores) and scores.ndim != 2:
            raise UserError(
                f"scores have shape {tuple(scores.shape)}; they must be (evaluated users, items), or a function "
                "from row numbers to such rows."
            )
        self._scores = scores

    def __call__(self, rows: Array) -> torch.Tensor:
        """A copy of these users' scores: what the function or matrix holds is never overwritten."""
        given = self._scores(rows) if callable(self._scores) else self._scores[rows]
        return torch.as_tensor(given).clone()


def _mixed(keys: Array) -> Array:
    """The splitmix64 finaliser: neighbouring keys give unrelated 64 bits (Steele et al. 2014)."""
    bits = keys + np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
