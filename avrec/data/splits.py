"""Splits: which interaction is for training, validation and test, and the ranking tasks that follow."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from avrec.batch import Array, Ragged, RankingTask, UserError
from avrec.data.tables import Interactions

TRAIN, VAL, TEST = 0, 1, 2
ROLES = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclass(frozen=True)
class Split:
    """The role of every row of the log.

    Attributes:
        role: TRAIN, VAL or TEST per row of the sorted log, int8.
        protocol: the split's settings, for every result.
        test_time: the moment at which test rankings are asked for, in the log's time; None where there is no
            one moment for all users.
    """

    role: Array
    protocol: dict[str, Any] = field(default_factory=dict)
    test_time: float | None = None


class Splitter(Protocol):
    """Assigns roles to the rows of a sorted log."""

    def __call__(self, log: Interactions) -> Split:
        """Roles of the rows of ``log``."""


class LeaveLastOut:
    """Each user's last interaction is for test, the one before for validation, the rest for training.

    What the field compares by. It leaks the future across users: one user's training rows may be younger than
    another's test row. Ties in time keep the order of the file. A user with two interactions has no validation
    row, one with a single interaction is for training alone.
    """

    def __call__(self, log: Interactions) -> Split:
        """Roles of the rows of ``log``."""
        length = np.bincount(log.user) if len(log) else np.zeros(0, np.int64)
        last = np.cumsum(length)[log.user] - 1
        from_end = last - np.arange(len(log))
        long_enough = length[log.user]
        role = np.full(len(log), TRAIN, np.int8)
        role[(from_end == 0) & (long_enough >= 2)] = TEST
        role[(from_end == 1) & (long_enough >= 3)] = VAL
        return Split(role, {"split": "leave_last_out", "leaks": "the future across users"})


class Temporal:
    """Two cut-off times for all users: what is older is for training, the youngest is for test.

    A user is asked for once, at the cut-off, and may have several items to be found. Items and users that appear
    only after the cut-off are cold and new.

    Args:
        val_share: share of the interactions between the cut-offs.
        test_share: share of the interactions after the second.

    Raises:
        UserError: the shares leave nothing to train on.
    """

    def __init__(self, val_share: float = 0.1, test_share: float = 0.1) -> None:
        if val_share <= 0 or test_share <= 0 or val_share + test_share >= 1:
            raise UserError(
                f"split.val_share={val_share} and split.test_share={test_share} are not possible. Both must be above 0 "
                "and their sum below 1."
            )
        self.val_share = val_share
        self.test_share = test_share

    def __call__(self, log: Interactions) -> Split:
        """Roles of the rows of ``log``.

        Raises:
            UserError: the log has no timestamps, or too few distinct ones.
        """
        if not log.has_time:
            raise UserError(
                "split=temporal needs a timestamp column in the interactions, and there is none. "
                "Add it, or give split=leave_last_out."
            )
        order = np.sort(log.time)
        val_time, test_time = (
            float(order[min(len(order) - 1, int(len(order) * (1 - share)))])
            for share in (self.val_share + self.test_share, self.test_share)
        )
        role = np.where(log.time < val_time, TRAIN, np.where(log.time < test_time, VAL, TEST)).astype(np.int8)
        if not (role == TRAIN).any() or not (role == VAL).any():
            raise UserError(
                f"split=temporal: the log has too few distinct timestamps to be cut at {val_time:g} and "
                f"{test_time:g}. Give other shares, or split=leave_last_out."
            )
        protocol = {"split": "temporal", "val_from": val_time, "test_from": test_time}
        return Split(role, protocol, test_time)


def ranking_task(log: Interactions, split: Split, which: str, num_items: int, seen_filter: bool = True) -> RankingTask:
    """The question that a split asks.

    Validation rankings see the training rows as history, test rankings the training and validation rows. A row
    of weight 0 is history, but never to be found.

    Args:
        log: the sorted log.
        split: its roles.
        which: ``val`` or ``test``.
        num_items: items of the catalogue; all of them are candidates.
        seen_filter: leave history items out of the ranking, and out of what is to be found.
    """
    target_role = ROLES[which]
    past = split.role < target_role
    asked = (split.role == target_role) & (log.weight > 0)
    dropped = {"weight_zero": int((split.role == target_role).sum() - asked.sum()), "already_seen": 0, "repeated": 0}
    pair = log.user * num_items + log.item
    if seen_filter:
        seen_before = np.isin(pair, pair[past])
        dropped["already_seen"] = int((asked & seen_before).sum())
        asked &= ~seen_before
    distinct = np.unique(pair[asked])
    dropped["repeated"] = int(asked.sum() - len(distinct))
    users, counts = np.unique(distinct // num_items, return_counts=True)
    relevant = Ragged(np.concatenate([[0], np.cumsum(counts)]), distinct % num_items)
    seen_pair = np.unique(pair[past])
    seen_pair = seen_pair[np.isin(seen_pair // num_items, users)]
    seen_counts = np.bincount(np.searchsorted(users, seen_pair // num_items), minlength=len(users))
    return RankingTask(
        split=which,
        user_index_E=users,
        relevant=relevant,
        seen=Ragged(np.concatenate([[0], np.cumsum(seen_counts)]), seen_pair % num_items),
        seen_filter=seen_filter,
        candidates_N=np.ones(num_items, bool),
        cold_N=np.bincount(log.item[split.role == TRAIN], minlength=num_items) == 0,
        popularity_N=np.bincount(log.item[past], minlength=num_items).astype(np.float64),
        protocol=dict(split.protocol),
        dropped=dropped,
    )
