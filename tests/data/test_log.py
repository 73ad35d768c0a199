"""The log: times, feedback, roles, and what is kept for the next run."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec.data.cleaning import Cleaning
from avrec.data.interactions import Feedback, Log, read_log, seconds_of
from avrec.data.tables import Table
from avrec.errors import UserError

NOON = 1_704_196_800  # 2024-01-02 12:00 UTC


def table(**columns):
    return Table(pl.LazyFrame(columns, strict=False), Path("log.csv"))


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        ([NOON, NOON + 60], "Unix time in s, 2024-01-02"),
        ([str(NOON), f"{NOON + 60}.0"], "Unix time in s"),
        ([NOON * 1000, (NOON + 60) * 1000], "Unix time in ms"),
        ([NOON * 10**6, (NOON + 60) * 10**6], "Unix time in us"),
        ([NOON * 10**9, (NOON + 60) * 10**9], "Unix time in ns"),
        (["2024-01-02T12:00:00Z", "2024-01-02T12:01:00Z"], "ISO 8601, 2024-01-02 to 2024-01-02"),
        (["2024-01-02 12:00:00", "2024-01-02 12:01:00"], "ISO 8601"),
        (["2024-01-02T13:00:00+01:00", "2024-01-02T10:01:00-0200"], "ISO 8601"),
        (["2024-01-02T12:00Z", " 2024-01-02 13:01:00.0+01 "], "ISO 8601"),
        (pl.Series(["2024-01-02T12:00:00", "2024-01-02T12:01:00"]).str.to_datetime(), "dates"),
        (pl.Series(["2024-01-02T12:00:00", "2024-01-02T12:01:00"]).str.to_datetime(time_zone="UTC"), "dates"),
    ],
)
def test_times_are_told_apart(values, read_as):
    seconds, how, is_clock = seconds_of(pl.Series(values), "auto", "t")
    assert seconds.tolist() == [NOON, NOON + 60]
    assert is_clock
    assert how.startswith(read_as)


def test_dates_alone_and_plain_orders():
    assert seconds_of(pl.Series(["2024-01-02"]), "auto", "t")[0].tolist() == [NOON - 12 * 3600]
    values, how, is_clock = seconds_of(pl.Series([3, 1, 2]), "auto", "t")
    assert values.tolist() == [3, 1, 2]
    assert not is_clock
    assert how.startswith("an order without a unit")


@pytest.mark.parametrize(
    ("unit", "value", "seconds"), [("s", 5, 5), ("ms", 5000, 5), ("order", NOON * 1000, NOON * 1000), ("ns", 5, 5e-9)]
)
def test_a_unit_that_is_given_is_believed(unit, value, seconds):
    assert seconds_of(pl.Series([value]), unit, "t")[0].tolist() == [seconds]


@pytest.mark.parametrize(
    ("values", "time", "message"),
    [
        ([1], "h", r"data\.time must be one of auto, s, ms, us, ns, iso, order; got h"),
        (
            ["2024-01-02", "soon"],
            "auto",
            r"t must hold a number or an ISO 8601 time .* 1 rows do not, .*row 2 with 'soon'",
        ),
        (["5"], "iso", "ISO 8601 time .* in every row"),
        (["2024-13-45"], "auto", r"ISO 8601 time \(2024-01-31, .*\) in every row"),
        (["03/04/2024"], "auto", r"row 1 with '03/04/2024'\. Convert times of another form first, or remove"),
        (["2024/01/02"], "iso", "ISO 8601"),
        (["02-01-2024 12:00"], "auto", "ISO 8601"),
    ],
)
def test_a_time_that_cannot_be_read_is_named(values, time, message):
    with pytest.raises(UserError, match=message):
        seconds_of(pl.Series(values), time, "t")


def test_what_a_log_becomes():
    log = read_log(
        table(
            user_id=["b", "a", "b"],
            item_id=[" y", "x", "x"],
            timestamp=[2, 1, 1],
            stars=[1, 2, 3],
            split=["train", "test ", "Valid"],
        ),
        ["x", "y"],
        "stars",
    )
    assert log.user_ids == ["b", "a"]
    assert log.rows.to_dict(as_series=False) == {
        "user": [0, 1, 0],
        "item": [1, 0, 0],
        "time": [2, 1, 1],
        "feedback": [1, 2, 3],
        "role": [0, 2, 1],
    }
    interactions = log.interactions(np.asarray([0.1, 0.2, 0.3], np.float32))
    assert interactions.user.tolist() == [0, 0, 1]
    assert interactions.item.tolist() == [0, 1, 0]
    assert interactions.given_role.tolist() == [1, 0, 2]
    np.testing.assert_allclose(interactions.weight, [0.3, 0.1, 0.2], rtol=1e-6)


def test_a_role_that_is_none_is_named():
    with pytest.raises(
        UserError, match=r"column split must hold one of train, val, .*; 1 rows do not, the first is row 2 with 'dev'"
    ):
        read_log(table(user_id=["a"] * 2, item_id=["x"] * 2, split=["train", "dev"]), ["x"], None)


def rows_of(entries):
    columns = {"user": pl.Int64, "item": pl.Int64, "time": pl.Float64, "feedback": pl.Float64}
    return pl.DataFrame(entries, schema=columns, orient="row")


def test_what_is_left_is_numbered_anew_and_kept_for_the_next_run(tmp_path):
    rows = rows_of([(0, 0, 1, 1), (1, 2, 1, 5), (2, 2, 3, 5), (1, 3, 2, 4)])
    log = Log(["a", "b", "c"], rows, True, np.ones(5, bool), []).cleaned(Cleaning(min_feedback=4))
    assert log.user_ids == ["b", "c"]
    # Item 0 lost all it had; items 1 and 4 never had any and stay.
    assert log.kept_N.tolist() == [False, True, True, True, True]
    assert log.rows["user"].to_list() == [0, 1, 0]
    assert log.rows["item"].to_list() == [1, 1, 2]
    assert Log.load(tmp_path / "log") is None
    log.save(tmp_path / "log")
    log.save(tmp_path / "log")
    again = Log.load(tmp_path / "log")
    assert again.rows.equals(log.rows)
    assert (again.user_ids, again.has_time, again.steps) == (log.user_ids, True, log.steps)
    assert again.kept_N.tolist() == log.kept_N.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_weights_are_never_negative_and_scale_to_one(values):
    for name in ("implicit", "scale", "log1p", "threshold"):
        weight = Feedback("x", name, 3).weights(np.asarray(values), "x")
        assert weight.dtype == np.float32
        assert ((weight >= 0) & np.isfinite(weight)).all()
        if name != "log1p":
            assert weight.max() <= 1
