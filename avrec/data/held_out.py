"""The ranking tasks that follow from a split."""

import numpy as np

from avrec.batch import Array
from avrec.data.splits import ROLES, TRAIN, VAL, Split
from avrec.data.tables import Interactions
from avrec.ranking_task import Ragged, RankingTask


def history_rows(log: Interactions, assigned: Split, split: str) -> Array:
    """Which rows are history when a ranking is asked for, bool per row of the log.

    Validation rankings see the training rows, test rankings the training and validation rows; where items are held
    out, both see the rows of the other items only. Under ``assigned.history == "past"`` a user is asked at the moment
    of the first target, and no row newer than that is history.
    """
    target_role = ROLES[split]
    rows = assigned.role < (target_role if assigned.item_role_N is None else VAL)
    if assigned.history == "past":
        users, first = np.unique(log.user[assigned.role == target_role], return_index=True)
        moment = np.full(int(log.user.max(initial=-1)) + 1, np.inf)
        # Rows are sorted by user and time: a user's first row is the oldest.
        moment[users] = log.time[assigned.role == target_role][first]
        rows &= log.time <= moment[log.user]
    return rows


def ranking_task(
    log: Interactions, assigned: Split, split: str, num_items: int, seen_filter: bool = True
) -> RankingTask:
    """The question that a split asks.

    The history is that of ``history_rows``. Under the seen filter, whatever the user has in an earlier role is
    neither a candidate nor to be found, newer than the history or not: the model may have been trained on it. A row
    of weight 0 is history, but never to be found. Rows of the task's role (``split``: val or test) and of earlier ones
    are history, to be found, or counted in ``dropped``.
    """
    target_role = ROLES[split]
    earlier = assigned.role < target_role
    known = earlier if assigned.item_role_N is None else assigned.role == TRAIN
    asked = (assigned.role == target_role) & (log.weight > 0)
    dropped = {"weight_zero": int((assigned.role == target_role).sum() - asked.sum()), "already_seen": 0, "repeated": 0}
    pair = log.user * num_items + log.item
    if seen_filter:
        seen_before = np.isin(pair, pair[earlier])
        dropped["already_seen"] = int((asked & seen_before).sum())
        asked &= ~seen_before
    distinct, first = np.unique(pair[asked], return_index=True)
    dropped["repeated"] = int(asked.sum() - len(distinct))
    dropped["history_held_out"] = int(earlier.sum() - known.sum())
    dropped["history_too_new"] = int(known.sum() - history_rows(log, assigned, split).sum())
    users, counts = np.unique(distinct // num_items, return_counts=True)
    relevant = Ragged(np.concatenate([[0], np.cumsum(counts)]), distinct % num_items)
    seen_pair = np.unique(pair[earlier])
    seen_pair = seen_pair[np.isin(seen_pair // num_items, users)]
    seen_counts = np.bincount(np.searchsorted(users, seen_pair // num_items), minlength=len(users))
    candidates_N = np.ones(num_items, bool)
    if assigned.item_role_N is not None and assigned.candidates == "cold":
        candidates_N = assigned.item_role_N == target_role
    return RankingTask(
        split=split,
        user_index_E=users,
        relevant=relevant,
        seen=Ragged(np.concatenate([[0], np.cumsum(seen_counts)]), seen_pair % num_items),
        seen_filter=seen_filter,
        candidates_N=candidates_N,
        cold_N=np.bincount(log.item[assigned.role == TRAIN], minlength=num_items) == 0,
        popularity_N=np.bincount(log.item[known], minlength=num_items).astype(np.float64),
        protocol=dict(assigned.protocol),
        dropped=dropped,
        relevant_time=log.time[asked][first] if log.has_time else np.zeros(0),
    )
