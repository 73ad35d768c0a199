"""avrec.data.splits: properties that hold for every log."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from avrec.content.items import RawItem
from avrec.data.held_out import history_rows, ranking_task
from avrec.data.splits import TEST, TRAIN, VAL, ColdItems, Given, LeaveLastOut, Random, Split, Splitter, Temporal
from avrec.data.tables import Catalogue, Interactions
from avrec.errors import UserError

N = 8


def log_of(rows: list[tuple[int, int, int, int]]) -> Interactions:
    user, item, time, weight = (np.array(column) for column in zip(*rows, strict=True))
    order = np.lexsort((np.arange(len(rows)), time, user))
    return Interactions(user[order], item[order], time[order].astype(np.float64), weight[order].astype(np.float32))


def catalogue_of(log: Interactions, items: int = N, **fields: Any) -> Catalogue:
    users = int(log.user.max(initial=-1)) + 1
    names = fields.pop("user_ids", [f"u{user}" for user in range(users)])
    none = np.zeros((users, 0), np.int64)
    return Catalogue(Path(), [RawItem(f"i{n}") for n in range(items)], [""] * items, names, log, none, **fields)


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, N - 1), st.integers(0, 30), st.integers(0, 2)), min_size=12, max_size=60
)


def check_task(log: Interactions, split: Split, which: str) -> None:
    task = ranking_task(log, split, which, N)
    target = {"val": VAL, "test": TEST}[which]
    used = history_rows(log, split, which).sum() + len(task.relevant.values)
    assert int((split.role <= target).sum()) == used + sum(task.dropped.values())
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
    split = LeaveLastOut()(catalogue_of(log))
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
            Temporal(0.2, 0.2)(catalogue_of(log))
        return
    split = Temporal(0.2, 0.2)(catalogue_of(log))
    assert log.time[split.role == TRAIN].max() < log.time[split.role == VAL].min()
    assert log.time[split.role == VAL].max() < split.test_time
    assert log.time[split.role == TEST].min() >= split.test_time
    check_task(log, split, "val")
    check_task(log, split, "test")


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"must be below 1; got "):
        Temporal(0.5, 0.5)
    log = log_of([(0, 1, 0, 1)])
    without = Interactions(log.user, log.item, log.time, log.weight, has_time=False)
    with pytest.raises(UserError, match="needs a timestamp column"):
        Temporal()(catalogue_of(without))


def test_without_the_seen_filter_repeats_count() -> None:
    log = log_of([(0, 1, 0, 1), (0, 2, 1, 1), (0, 1, 2, 1)])
    split = LeaveLastOut()(catalogue_of(log))
    assert len(ranking_task(log, split, "test", N)) == 0
    task = ranking_task(log, split, "test", N, seen_filter=False)
    assert task.relevant[0].tolist() == [1]


# The same in dicts and loops: what ranking_task does with arrays.


def naive_task(log: Interactions, role: list[int], target: int, seen_filter: bool) -> dict[str, Any]:
    history: dict[int, list[int]] = {}
    found: dict[int, list[int]] = {}
    dropped = {"weight_zero": 0, "already_seen": 0, "repeated": 0, "history_held_out": 0, "history_too_new": 0}
    rows = list(zip(log.user.tolist(), log.item.tolist(), log.weight.tolist(), role, strict=True))
    times = log.time.tolist()
    asked_at = {
        user: min(times[n] for n, row in enumerate(rows) if row[0] == user and row[3] == target)
        for user, _, _, one in rows
        if one == target
    }
    dropped["history_too_new"] = sum(
        row[3] < target and times[n] > asked_at.get(row[0], np.inf) for n, row in enumerate(rows)
    )
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
        split = splitter(catalogue_of(log))
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
    assert LeaveLastOut()(catalogue_of(log)).role.tolist() == expected
    none = np.zeros(0, np.int64)
    empty = Interactions(none, none, none.astype(float), none.astype(np.float32))
    assert LeaveLastOut()(catalogue_of(empty)).role.tolist() == []


@pytest.mark.parametrize("val", [-0.1, 0, 0.5, 0.95, 1.5])
@pytest.mark.parametrize("test", [-0.1, 0, 0.5, 1])
def test_shares_must_leave_something(val: float, test: float) -> None:
    with pytest.raises(UserError, match=r"`(val|test)_share` must be a number in \(0, 1\)|must be below 1; got "):
        Temporal(val, test)


@pytest.mark.parametrize("times", [[3], [3, 3, 3], [1, 1, 1, 2]])
def test_too_few_moments_to_cut_at(times: list[int]) -> None:
    with pytest.raises(UserError, match=r"too few distinct timestamps to be cut at .* or split=leave_last_out"):
        Temporal()(catalogue_of(log_of([(0, n, time, 1) for n, time in enumerate(times)])))


def test_shares_are_those_of_the_log() -> None:
    split = Temporal(0.2, 0.1)(catalogue_of(log_of([(n % 7, n % N, n, 1) for n in range(100)])))
    assert np.bincount(split.role).tolist() == [70, 20, 10]
    assert split.test_time == 90
    assert split.protocol == {"split": "temporal", "val_from": 70, "test_from": 90, "leaks": "nothing"}


# ---- what holds for every split: cold items, random, given


def a_catalogue(rows: list[tuple[int, int, int, int]], data: st.DataObject) -> Catalogue:
    """A catalogue with roles and publication times, where they are known."""
    log = log_of(rows)
    role = data.draw(st.lists(st.sampled_from([TRAIN, VAL, TEST]), min_size=len(rows), max_size=len(rows)))
    published = data.draw(st.lists(st.integers(0, 9) | st.just(np.nan), min_size=N, max_size=N))
    log = Interactions(log.user, log.item, log.time, log.weight, given_role=np.array(role, np.int8))
    return catalogue_of(log, published_N=np.array(published, np.float64))


SHARES = st.sampled_from([0.2, 0.3])
COLD = st.builds(
    ColdItems,
    st.sampled_from(["random", "published", "first_seen"]),
    SHARES,
    SHARES,
    st.sampled_from(["cold", "all"]),
    st.sampled_from(["past", "all"]),
    st.integers(0, 9),
)
RANDOM = st.builds(
    Random, SHARES, SHARES, st.sampled_from(["user", "all"]), st.sampled_from(["past", "all"]), st.integers(0, 9)
)
GIVEN = st.builds(Given, st.sampled_from(["past", "all"]))
ANY = COLD | RANDOM | GIVEN | st.builds(Temporal, SHARES, SHARES) | st.builds(LeaveLastOut)


def split_or_skip(splitter: Splitter, catalogue: Catalogue) -> Split:
    try:
        return splitter(catalogue)
    except UserError:
        reject()


@settings(max_examples=200, deadline=None)
@given(ROWS, ANY, st.booleans(), st.data())
def test_every_split(
    rows: list[tuple[int, int, int, int]], splitter: Splitter, seen_filter: bool, data: st.DataObject
) -> None:
    catalogue = a_catalogue(rows, data)
    split, log = split_or_skip(splitter, catalogue), catalogue.log
    assert split.role.dtype == np.int8
    assert len(split.role) == len(log)
    assert set(split.role.tolist()) <= {TRAIN, VAL, TEST}
    assert {"split", "leaks"} <= set(split.protocol)
    trained = set(log.item[split.role == TRAIN].tolist())
    for which, target in (("val", VAL), ("test", TEST)):
        task = ranking_task(log, split, which, N, seen_filter)
        history = history_rows(log, split, which)
        # Rows in = history + to be found + dropped.
        assert not (history & (split.role >= target)).any()
        counted = history.sum() + len(task.relevant.values) + sum(task.dropped.values())
        assert counted == (split.role <= target).sum()
        assert {n for n in range(N) if task.cold_N[n]} == set(range(N)) - trained
        for row, user in enumerate(task.user_index_E.tolist()):
            mine = log.user == user
            wanted = task.relevant[row]
            assert len(wanted)
            assert task.candidates_N[wanted].all()
            assert set(wanted.tolist()) <= set(log.item[mine & (split.role == target)].tolist())
            assert set(log.item[mine & history].tolist()) <= set(task.seen[row].tolist())
            if seen_filter:
                assert not set(wanted.tolist()) & set(log.item[mine & (split.role == TRAIN)].tolist())
            if split.history == "past" and (mine & history).any():
                assert log.time[mine & history].max() <= log.time[mine & (split.role == target)].min()
    again = splitter(catalogue)
    assert again.role.tolist() == split.role.tolist()
    assert again.protocol == split.protocol


@settings(max_examples=100, deadline=None)
@given(ROWS, COLD, st.data())
def test_held_out_items_are_in_no_other_role(
    rows: list[tuple[int, int, int, int]], splitter: ColdItems, data: st.DataObject
) -> None:
    catalogue = a_catalogue(rows, data)
    split, log = split_or_skip(splitter, catalogue), catalogue.log
    assert split.item_role_N is not None
    sizes = split.protocol["val_items"], split.protocol["test_items"]
    assert tuple(int((split.item_role_N == role).sum()) for role in (VAL, TEST)) == sizes
    assert min(sizes) >= 1
    if splitter.by != "random":
        first = [min((t for i, t in zip(log.item, log.time, strict=True) if i == n), default=np.nan) for n in range(N)]
        time_N = catalogue.published_N if splitter.by == "published" else np.array(first)
        known = np.isfinite(time_N)
        assert (split.item_role_N[~known] == TRAIN).all()
        assert split.protocol["items_without_time"] == (~known).sum()
        old, mid, new = (time_N[known & (split.item_role_N == role)] for role in (TRAIN, VAL, TEST))
        assert old.max(initial=-1) < mid.min() <= mid.max() < new.min()
    for which, target in (("val", VAL), ("test", TEST)):
        held_out = split.item_role_N == target
        task = ranking_task(log, split, which, N)
        assert not held_out[log.item[split.role != target]].any()
        assert (split.item_role_N[log.item[history_rows(log, split, which)]] == TRAIN).all()
        assert task.cold_N[held_out].all()
        assert not task.popularity_N[split.item_role_N != TRAIN].any()
        assert held_out[task.relevant.values].all()
        assert task.candidates_N.tolist() == (held_out.tolist() if splitter.candidates == "cold" else [True] * N)


@settings(max_examples=100, deadline=None)
@given(ROWS, ANY, st.data())
def test_the_order_of_the_files_rows_does_not_matter(
    rows: list[tuple[int, int, int, int]], splitter: Splitter, data: st.DataObject
) -> None:
    if isinstance(splitter, LeaveLastOut):
        # Ties in time keep the order of the file, by its docstring.
        rows = list({(user, time): (user, item, time, weight) for user, item, time, weight in rows}.values())
    published = np.arange(N) * 1.0

    def roles(order: list[int]) -> dict[Any, Any]:
        """Roles by row, where the users are numbered as the file names them."""
        names = list(dict.fromkeys(f"u{rows[n][0]}" for n in order))
        shuffled = [(names.index(f"u{rows[n][0]}"), *rows[n][1:]) for n in order]
        log = log_of(shuffled)
        given_role = (log.item % 3).astype(np.int8)
        log = Interactions(log.user, log.item, log.time, log.weight, given_role=given_role)
        catalogue = catalogue_of(log, user_ids=names, published_N=published)
        split = split_or_skip(splitter, catalogue)
        found: dict[Any, Any] = {}
        histories = [history_rows(log, split, which) for which in ("val", "test")]
        for n in range(len(log)):
            key = (names[log.user[n]], int(log.item[n]), float(log.time[n]), float(log.weight[n]))
            found.setdefault(key, []).append((int(split.role[n]), *(bool(rows_[n]) for rows_ in histories)))
        return {key: sorted(values) for key, values in found.items()}

    order = data.draw(st.permutations(range(len(rows))))
    assert roles(list(range(len(rows)))) == roles(order)


def test_seeds_draw_different_rows_and_items() -> None:
    catalogue = catalogue_of(log_of([(n % 7, n % 40, n, 1) for n in range(200)]), items=40)
    for splitter in (ColdItems, Random):
        one, other = (splitter(seed=seed)(catalogue).role.tolist() for seed in (0, 1))
        assert one != other


def test_cold_items_are_the_first_share_of_the_seeds_permutation() -> None:
    items = 3416
    catalogue = catalogue_of(log_of([(0, n, n, 1) for n in range(items)]), items)
    split = ColdItems(test_share=0.2, seed=0)(catalogue)
    cold = np.random.default_rng(0).permutation(items)[:683]
    assert split.protocol["test_items"] == 683
    assert sorted(cold) == np.flatnonzero(split.item_role_N == TEST).tolist()


def test_all_history_of_a_cold_item_is_every_warm_row() -> None:
    log = log_of([(0, n, n, 1) for n in range(N)])
    for history in ("past", "all"):
        split = ColdItems(history=history)(catalogue_of(log))
        rows = history_rows(log, split, "test")
        first = np.flatnonzero(split.role == TEST).min()
        warm = split.role == TRAIN
        assert rows.tolist() == (warm if history == "all" else warm & (np.arange(N) < first)).tolist()
        assert ("history rows" in split.protocol["leaks"]) == (history == "all")


def test_random_shares_are_of_each_user_or_of_all() -> None:
    log = log_of([(user, n % N, n, 1) for user, rows in enumerate((1, 2, 4, 5, 10, 20)) for n in range(rows)])
    role = Random(0.1, 0.2)(catalogue_of(log)).role
    counts = [np.bincount(role[log.user == user], minlength=3).tolist() for user in range(6)]
    assert counts == [[1, 0, 0], [2, 0, 0], [3, 0, 1], [3, 1, 1], [7, 1, 2], [14, 2, 4]]
    # One row at least stays for training.
    for rows, roles in ((1, [1]), (2, [1, 0, 1]), (3, [1, 0, 2])):
        short = catalogue_of(log_of([(0, n, n, 1) for n in range(rows)]))
        assert np.bincount(Random(0.4, 0.5)(short).role).tolist() == roles
    role = Random(0.25, 0.5, of="all")(catalogue_of(log)).role
    assert np.bincount(role).tolist() == [10, 11, 21]


def test_given_roles_are_taken_as_they_are() -> None:
    log = log_of([(0, 0, 3, 1), (0, 1, 1, 1), (0, 2, 2, 1), (1, 3, 0, 1)])
    role = np.array([TRAIN, VAL, TEST, TRAIN], np.int8)
    split = Given()(catalogue_of(Interactions(log.user, log.item, log.time, log.weight, given_role=role)))
    assert split.role.tolist() == role.tolist()
    assert split.protocol == {"split": "given", "history": "past", "leaks": "nothing"}
    role = np.array([TEST, VAL, TRAIN, TRAIN], np.int8)
    split = Given()(catalogue_of(Interactions(log.user, log.item, log.time, log.weight, given_role=role)))
    assert split.protocol["leaks"] == "1 training rows are younger than the oldest test row"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColdItems(by="age"), "`by` must be one of random, published, first_seen; got age"),
        (lambda: ColdItems(candidates="warm"), "`candidates` must .* got warm"),
        (lambda: ColdItems(history="none"), "`history` must be one of past, all; got none"),
        (lambda: ColdItems(val_share=0), r"`val_share` must be a number in \(0, 1\); got 0"),
        (lambda: Random(of="item"), "`of` must be one of user, all; got item"),
        (lambda: Random(0.5, 0.5), "must be below 1; got 0.5 and 0.5"),
        (lambda: Given(history="x"), "`history` must .* got x"),
    ],
)
def test_choices_that_are_not_known(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_what_a_catalogue_lacks() -> None:
    log = log_of([(0, n, n, 1) for n in range(N)])
    with pytest.raises(UserError, match="by=published needs a published column in the items, and there is none"):
        ColdItems("published")(catalogue_of(log))
    without = Interactions(log.user, log.item, log.time, log.weight, has_time=False)
    with pytest.raises(UserError, match="by=first_seen needs a timestamp in the interactions"):
        ColdItems("first_seen")(catalogue_of(without))
    with pytest.raises(UserError, match="leaves 2 of 2 items to train on, 0 for validation and 0 for test"):
        ColdItems()(catalogue_of(log_of([(0, 0, 0, 1), (0, 1, 0, 1)]), 2))
    with pytest.raises(UserError, match="no interaction is marked train or val or test"):
        Given()(catalogue_of(log))
    only = Interactions(log.user, log.item, log.time, log.weight, given_role=np.full(N, TRAIN, np.int8))
    with pytest.raises(UserError, match=r"no interaction is marked val or test\..* column split"):
        Given()(catalogue_of(only))
