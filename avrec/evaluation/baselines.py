"""Baseline scorers; they go through the same ranking, masks and metrics as the model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from avrec.batch import Array
from avrec.errors import UserError
from avrec.ranking_task import RankingTask


class PopularityScorer:
    """The same score for everyone: the item's interactions known at the time of the ranking."""

    def __init__(self, popularity_N: Array) -> None:
        self.popularity_N = torch.from_numpy(np.asarray(popularity_N, dtype=np.float64))

    def __call__(self, rows: Array) -> torch.Tensor:
        """The popularities, once per user."""
        return self.popularity_N.repeat(len(rows), 1)


class RandomScorer:
    """A pseudo-random score, uniform in [0, 1), fixed by seed, user and item alone: the level of chance."""

    def __init__(self, task: RankingTask, num_items: int, seed: int = 0) -> None:
        self._keys = [np.array([seed % 2**64, user], np.uint64) for user in task.user_index_E.tolist()]
        self._num_items = num_items

    def __call__(self, rows: Array) -> torch.Tensor:
        """The fixed scores of these users."""
        # Philox is counter-based: each user's key gives a stream of its own.
        streams = (np.random.Generator(np.random.Philox(key=self._keys[row])) for row in rows.tolist())
        return torch.from_numpy(np.stack([stream.random(self._num_items) for stream in streams]))


class ScoreMatrixScorer:
    """Scores known from elsewhere: the oracle's true scores, or another library's.

    Args:
        scores: an array or tensor (E, N), or a function from row numbers to scores (B, N).
    """

    def __init__(self, scores: Array | torch.Tensor | Callable[[Array], Any]) -> None:
        if not callable(scores) and scores.ndim != 2:
            raise UserError(
                f"scores must be an array (evaluated users, items), or a function from row numbers to its rows; got "
                f"shape {tuple(scores.shape)}."
            )
        self._scores = scores

    def __call__(self, rows: Array) -> torch.Tensor:
        """A copy of these users' scores: what the function or matrix holds is never overwritten."""
        given = self._scores(rows) if callable(self._scores) else self._scores[rows]
        return torch.as_tensor(given).clone()
