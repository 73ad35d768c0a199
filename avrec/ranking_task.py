"""What evaluation is asked: the contract between the data's held-out interactions and the rankings.

Every folder may import this file; it imports batch alone.
"""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from avrec.batch import Array


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length: row ``i`` is ``values[starts[i] : starts[i + 1]]``."""

    starts: Array
    values: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.starts[row] : self.starts[row + 1]]

    def rows(self) -> Array:
        """The row of each value.

        >>> Ragged.of([[1, 2], [], [3]]).rows().tolist()
        [0, 0, 2]
        """
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def take(self, rows: Array) -> "Ragged":
        """These rows, in this order.

        >>> Ragged.of([[1, 2], [], [3]]).take(np.array([2, 0])).values.tolist()
        [3, 1, 2]
        """
        first, lengths = self.starts[rows], np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(starts, self.values[np.repeat(first - starts[:-1], lengths) + np.arange(starts[-1])])

    @classmethod
    def of(cls, rows: list[Any]) -> Self:
        """From a list of sequences of int."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        values = np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, np.int64) for row in rows)])
        return cls(starts, values)


@dataclass(frozen=True)
class RankingTask:
    """One split's question: rank the catalogue for each of these users; these items are what they chose.

    Attributes:
        split: "val" or "test".
        user_index_E: catalogue user index of each of the E evaluated users.
        relevant: per evaluated user, the items to be found: distinct, none of them in ``seen`` under the
            seen filter.
        seen: per evaluated user, the items of earlier roles, those newer than the history (``history_rows``) too;
            excluded from ranking where ``seen_filter``.
        seen_filter: True: seen items are not candidates.
        candidates_N: True where the item may be recommended.
        cold_N: True where the item has no interaction in train.
        popularity_N: interactions known when the ranking is asked for (the histories'), float64.
        protocol: the split's settings as they go into every result, JSON-able.
        dropped: counts of rows and users left out, by reason.
        relevant_time: when each of ``relevant.values`` was first chosen in this role, in the log's time; empty where
            nothing is known.
    """

    split: str
    user_index_E: Array
    relevant: Ragged
    seen: Ragged
    seen_filter: bool
    candidates_N: Array
    cold_N: Array
    popularity_N: Array
    protocol: dict[str, Any]
    dropped: dict[str, int] = field(default_factory=dict)
    relevant_time: Array = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.user_index_E)
