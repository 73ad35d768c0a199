"""avrec.data.splits: properties that hold for every log."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.batch import UserError
from avrec.data.splits import TEST, TRAIN, VAL, LeaveLastOut, Split, Temporal, ranking_task
from avrec.data.tables import Interactions

N = 8


def log_of(rows: list[tuple[int, int, int, int]]) -> Interactions:
    user, item, time, weight = (np.array(column) for column in zip(*rows, strict=True))
    order = np.lexsort((np.arange(len(rows)), time, user))
    return Interactions(user[order], item[order], time[order].astype(np.float64), weight[order].astype(np.float32))


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, N - 1), st.integers(0, 30), st.integers(0, 2)), min_size=12, max_size=60
)


def check_task(log: Interactions, split: Split, which: str) -> None:
    task = ranking_task(log, split, which, N)
    target = {"val": VAL, "test": TEST}[which]
    assert int((split.role == target).sum()) == len(task.relevant.values) + sum(task.dropped.values())
    rows = {int(user): row for row, user in enumerate(task.user_index_E)}
    for user in range(int(log.user.max()) + 1):
        mine = log.user == user
        history = set(log.item[mine & (split.role < target)].tolist())
        wanted = set(log.item[mine & (split.role == target) & (log.weight > 0)].tolist()) - history
        assert (user in rows) == bool(wanted)
        if wanted:
            relevant = task.relevant[rows[user]].tolist()
            assert sorted(relevant) == sorted(wanted)
            assert set(task.seen[rows[user]].tolist()) == history
    train_items = set(log.item[split.role == TRAIN].tolist())
    assert {n for n in range(N) if task.cold_N[n]} == set(range(N)) - train_items
    counts = [int((log.item[split.role < target] == n).sum()) for n in range(N)]
    assert task.popularity_N.tolist() == counts


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_leave_last_out(rows: list[tuple[int, int, int, int]]) -> None:
    log = log_of(rows)
    split = LeaveLastOut()(log)
    for user in set(log.user.tolist()):
        role = split.role[log.user == user].tolist()
        expected = {1: [TRAIN], 2: [TRAIN, TEST]}.get(len(role), [TRAIN] * (len(role) - 2) + [VAL, TEST])
        assert role == expected
    check_task(log, split, "val")
    check_task(log, split, "test")


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_temporal(rows: list[tuple[int, int, int, int]]) -> None:
    log = log_of(rows)
    order = np.sort(log.time)
    cuts = [order[int(len(order) * (1 - share))] for share in (0.4, 0.2)]
    if not order[0] < cuts[0] < cuts[1]:
        with pytest.raises(UserError, match="too few distinct timestamps"):
            Temporal(0.2, 0.2)(log)
        return
    split = Temporal(0.2, 0.2)(log)
    assert log.time[split.role == TRAIN].max() < log.time[split.role == VAL].min()
    assert log.time[split.role == VAL].max() < split.test_time
    assert log.time[split.role == TEST].min() >= split.test_time
    check_task(log, split, "val")
    check_task(log, split, "test")


def test_refusals() -> None:
    with pytest.raises(UserError, match="Both must be above 0"):
        Temporal(0.5, 0.5)
    log = log_of([(0, 1, 0, 1)])
    without = Interactions(log.user, log.item, log.time, log.weight, has_time=False)
    with pytest.raises(UserError, match="needs a timestamp column"):
        Temporal()(without)


def test_without_the_seen_filter_repeats_count() -> None:
    log = log_of([(0, 1, 0, 1), (0, 2, 1, 1), (0, 1, 2, 1)])
    split = LeaveLastOut()(log)
    assert len(ranking_task(log, split, "test", N)) == 0
    task = ranking_task(log, split, "test", N, seen_filter=False)
    assert task.relevant[0].tolist() == [1]
