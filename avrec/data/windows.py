"""Sequences of interactions by user, the windows of them that make a batch, and how likely an item is to be in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

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
        """First row, and row after the last, of each user's latest ``longest`` interactions."""
        stop = self.starts[users + 1]
        return np.maximum(self.starts[users], stop - longest), stop


@dataclass
class WindowSampler:
    """Batches of windows, in an order that depends on (seed, epoch) and nothing else.

    A window is a user and a range of the user's training rows, at most ``history_length + 1`` of them. Long
    sequences are cut into windows that overlap in one row, from an offset drawn anew each epoch, so that every row
    is a target exactly once per epoch. A batch has ``users_per_batch`` windows for each of ``world_size`` processes,
    of which this one is number ``rank``.
    """

    sequences: Sequences
    history_length: int
    users_per_batch: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.epoch = self.resumed_epoch = self.resumed_batch = 0

    @property
    def first_batch(self) -> int:
        """The first batch of this epoch that is still to come: not 0 only in the epoch that a run was resumed in."""
        return self.resumed_batch if self.epoch == self.resumed_epoch else 0

    def set_epoch(self, epoch: int) -> None:
        """The order of epoch ``epoch``, from its first batch, or from where a resumed run stopped in it."""
        # Lightning sets epoch 0 once more between a checkpoint's loading and the first step: the place outlives it.
        self.epoch = epoch

    def windows(self) -> Array:
        """(W, 3): user, first row, row after the last; shuffled."""
        rng = np.random.default_rng([self.seed, self.epoch])
        length = self.sequences.lengths()
        # As few windows as possible hold all targets; the slack decides where the first of them may end.
        least = (length - 1) - (self._pieces() - 1) * self.history_length
        offset = rng.integers(np.clip(least, 0, self.history_length), self.history_length + 1)
        rows = [self._cut(int(user), int(length[user]), int(offset[user])) for user in np.flatnonzero(length)]
        windows = np.concatenate(rows) if rows else np.zeros((0, 3), np.int64)
        return windows[rng.permutation(len(windows))]

    def _cut(self, user: int, length: int, offset: int) -> Array:
        start = int(self.sequences.starts[user])
        # Targets 0..offset come in the first window; each later one starts on the row before its first target.
        cuts = np.arange(offset + 1, length, self.history_length)
        first = np.concatenate([[0], cuts - 1])
        stop = np.concatenate([cuts, [length]])
        return np.stack([np.full(len(first), user), start + first, start + stop], axis=1)

    def _pieces(self) -> Array:
        """Windows of each user, the same in every epoch."""
        length = self.sequences.lengths()
        return np.where(length > 0, 1 + np.maximum(length - 2, 0) // self.history_length, 0)

    def __len__(self) -> int:
        """Batches of an epoch, the same in every epoch and process."""
        return -(-int(self._pieces().sum()) // (self.users_per_batch * self.world_size))

    def __iter__(self) -> Iterator[Array]:
        windows = self.windows()
        share = self.users_per_batch * self.world_size
        for batch in range(self.first_batch, len(self)):
            whole = windows[batch * share : (batch + 1) * share]
            # The last batch may be too short to give each process a window: it goes round.
            mine = whole[self.rank :: self.world_size]
            yield mine if len(mine) else whole[self.rank % len(whole)][None]

    def state_dict(self) -> dict[str, Any]:
        """Where the order stands; ``first_batch`` is set by whoever counts the batches that were used."""
        return {"epoch": self.epoch, "first_batch": self.first_batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` stood."""
        self.seed = state["seed"]
        self.epoch = self.resumed_epoch = state["epoch"]
        self.resumed_batch = state["first_batch"]


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


def log_inclusion(share: Array, draws: int) -> Array:
    """Natural log of the probability that an item is among the distinct items of a batch.

    ``log(1 − (1 − p)^n)`` for n = ``draws`` that each give the item with probability p = ``share``, in (0, 1];
    stable for small p.

    >>> np.exp(log_inclusion(np.array([0.5, 1.0]), 2)).round(6).tolist()
    [0.75, 1.0]
    """
    with np.errstate(divide="ignore"):
        missed = draws * np.log1p(-np.minimum(share, 1.0))
    return np.log(-np.expm1(missed))
