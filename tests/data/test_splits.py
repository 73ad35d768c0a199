"""avrec.data.splits: properties that hold for every log."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.batch import UserError
from avrec.data.splits import TEST, TRAIN, VAL, LeaveLastOut, Split, Splitter, Temporal, ranking_task
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


# The same in dicts and loops: what ranking_task does with arrays.


def naive_task(log: Interactions, role: list[int], target: int, seen_filter: bool) -> dict[str, Any]:
    history: dict[int, list[int]] = {}
    found: dict[int, list[int]] = {}
    dropped = {"weight_zero": 0, "already_seen": 0, "repeated": 0}
    rows = list(zip(log.user.tolist(), log.item.tolist(), log.weight.tolist(), role, strict=True))
    for user, item, _, row_role in rows:
        if row_role < target:
            history.setdefault(user, []).append(item)
    for user, item, weight, row_role in rows:
        if row_role != target:
            continue
        if weight == 0:
            dropped["weight_zero"] += 1
        elif seen_filter and item in history.get(user, []):
            dropped["already_seen"] += 1
        elif item in found.get(user, []):
            dropped["repeated"] += 1
        else:
            found.setdefault(user, []).append(item)
    train = [item for _, item, _, row_role in rows if row_role == TRAIN]
    known = [item for items in history.values() for item in items]
    return {
        "users": sorted(found),
        "relevant": [sorted(found[user]) for user in sorted(found)],
        "seen": [sorted(set(history.get(user, []))) for user in sorted(found)],
        "dropped": dropped,
        "cold": [item not in train for item in range(N)],
        "popularity": [known.count(item) for item in range(N)],
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 4), min_size=1, max_size=30), st.booleans(), st.data())
def test_any_roles_against_loops(rows: list[tuple[int, int, int, int]], seen_filter: bool, data: st.DataObject) -> None:
    log = log_of(rows)
    role = data.draw(st.lists(st.sampled_from([TRAIN, VAL, TEST]), min_size=len(rows), max_size=len(rows)))
    split = Split(np.array(role, np.int8), {"split": "drawn"})
    for which, target in (("val", VAL), ("test", TEST)):
        task = ranking_task(log, split, which, N, seen_filter)
        assert {
            "users": task.user_index_E.tolist(),
            "relevant": [task.relevant[row].tolist() for row in range(len(task.relevant))],
            "seen": [task.seen[row].tolist() for row in range(len(task.seen))],
            "dropped": task.dropped,
            "cold": task.cold_N.tolist(),
            "popularity": task.popularity_N.tolist(),
        } == naive_task(log, role, target, seen_filter)
        assert len(task) == len(task.relevant) == len(task.seen)
        assert (task.split, task.seen_filter, task.protocol) == (which, seen_filter, {"split": "drawn"})
        assert task.candidates_N.tolist() == [True] * N
        assert task.popularity_N.dtype == np.float64


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([LeaveLastOut(), Temporal(0.1, 0.1), Temporal(0.3, 0.4)]))
def test_nothing_of_the_future_is_history(rows: list[tuple[int, int, int, int]], splitter: Splitter) -> None:
    log = log_of(rows)
    try:
        split = splitter(log)
    except UserError:
        return
    assert split.role.dtype == np.int8
    assert set(split.role.tolist()) <= {TRAIN, VAL, TEST}
    assert split.protocol["split"] in {"leave_last_out", "temporal"}
    for target in (VAL, TEST):
        for user in set(log.user[split.role == target].tolist()):
            mine = log.user == user
            history, targets = (
                np.flatnonzero(mine & (split.role < target)),
                np.flatnonzero(mine & (split.role == target)),
            )
            if len(history):
                # Ties in time keep the row's order; with one cut-off for all, there are no ties across it.
                assert history.max() < targets.min()
                assert log.time[history].max() <= log.time[targets].min()
                assert split.test_time is None or log.time[history].max() < log.time[targets].min()
    if isinstance(splitter, LeaveLastOut):
        assert split.test_time is None
        assert "leaks" in split.protocol
    else:
        assert log.time[split.role < TEST].max() < split.test_time == log.time[split.role == TEST].min()
        cuts = split.protocol["val_from"], split.protocol["test_from"]
        assert cuts == (log.time[split.role == VAL].min(), split.test_time)


def test_leave_last_out_of_short_and_absent_users() -> None:
    # User 0 has no row, user 1 one, user 2 two, user 3 three, and user 4 four at the same moment.
    log = log_of([(1, 0, 5, 1), (2, 0, 2, 1), (2, 1, 1, 1), *((3, n, n, 1) for n in range(3)), *[(4, 0, 7, 1)] * 4])
    expected = [TRAIN, TRAIN, TEST, TRAIN, VAL, TEST, TRAIN, TRAIN, VAL, TEST]
    assert LeaveLastOut()(log).role.tolist() == expected
    none = np.zeros(0, np.int64)
    assert LeaveLastOut()(Interactions(none, none, none.astype(float), none.astype(np.float32))).role.tolist() == []


@pytest.mark.parametrize("val", [-0.1, 0, 0.5, 0.95, 1.5])
@pytest.mark.parametrize("test", [-0.1, 0, 0.5, 1])
def test_shares_must_leave_something(val: float, test: float) -> None:
    message = rf"split\.val_share={val} and split\.test_share={test} are not possible\. Both must be above 0"
    with pytest.raises(UserError, match=message):
        Temporal(val, test)


@pytest.mark.parametrize("times", [[3], [3, 3, 3], [1, 1, 1, 2]])
def test_too_few_moments_to_cut_at(times: list[int]) -> None:
    with pytest.raises(UserError, match=r"too few distinct timestamps to be cut at .* or split=leave_last_out"):
        Temporal()(log_of([(0, n, time, 1) for n, time in enumerate(times)]))


def test_shares_are_those_of_the_log() -> None:
    split = Temporal(0.2, 0.1)(log_of([(n % 7, n % N, n, 1) for n in range(100)]))
    assert np.bincount(split.role).tolist() == [70, 20, 10]
    assert split.test_time == 90
    assert split.protocol == {"split": "temporal", "val_from": 70, "test_from": 90}
