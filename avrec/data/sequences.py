"""Sequences: each user's interactions in order."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from avrec.batch import Array
from avrec.data.tables import Interactions


@dataclass(frozen=True)
class Sequences:
    """Rows of the log by user, oldest first. User u's rows are ``starts[u] : starts[u + 1]`` of each array."""

    starts: Array
    item: Array
    time: Array
    weight: Array

    @classmethod
    def of(cls, log: Interactions, keep: Array, num_users: int) -> Self:
        """The sequences of the rows where ``keep`` is True."""
        counts = np.bincount(log.user[keep], minlength=num_users)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(starts, log.item[keep], log.time[keep], log.weight[keep])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths(self) -> Array:
        """Interactions per user."""
        return np.diff(self.starts)

    def last(self, users: Array, longest: int) -> tuple[Array, Array]:
        """First and last-but-one row of each user's youngest ``longest`` interactions."""
        stop = self.starts[users + 1]
        return np.maximum(self.starts[users], stop - longest), stop


def padded(values: Array, first: Array, stop: Array, width: int) -> tuple[Array, Array]:
    """Left-aligned rows ``values[first[b] : stop[b]]``.

    Returns:
        (B, width) values with 0 where not present, and (B, width) present.
    """
    place = np.arange(width)
    present = place < (stop - first)[:, None]
    index = np.where(present, first[:, None] + place, 0)
    rows = values[index] if len(values) else np.zeros(index.shape, values.dtype)
    return np.where(present, rows, np.zeros((), values.dtype)), present
