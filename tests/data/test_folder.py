"""The folder source: a team's tables to a catalogue."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.content.items import TextFields
from avrec.data.cleaning import Cleaning
from avrec.data.sources.folder import FolderSource
from avrec.errors import UserError

ITEMS = {
    "item_id": ["i1", "i2", "i3"],
    "title": ["One", None, "Three"],
    "description": ["first", "second", None],
    "image": ["a.png", None, None],
    "published": [1.5, 2.5, 3.5],
}
LOG = {
    "user_id": ["u2", "u1", "u2", "u1", "u2"],
    "item_id": ["i1", "i2", "i3", "i1", "i2"],
    "timestamp": [5, 2, 3, 2, 3],
    "rating": [4.0, 0.0, 2.0, 1.0, 3.0],
}
USERS = {"user_id": ["u1", "u2"], "plan": ["pro", "free"], "age": [20, 40]}


def folder(root, items=ITEMS, log=LOG, users=None, suffix="csv"):
    for name, columns in (("items", items), ("interactions", log), ("users", users)):
        if columns is not None:
            table = pl.DataFrame(columns, strict=False)
            path = root / f"{name}.{suffix}"
            {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[suffix](path)
    return root


def without(columns, *names):
    return {name: values for name, values in columns.items() if name not in names}


def as_plain(catalogue):
    log = catalogue.log
    arrays = (log.user, log.item, log.time, log.weight, catalogue.user_categories, catalogue.user_numbers)
    dtypes = [array.dtype.name for array in arrays]
    rest = (catalogue.items, catalogue.titles, catalogue.user_ids, catalogue.category_sizes, catalogue.text)
    return [array.tolist() for array in arrays], dtypes, rest, log.has_time


def test_what_a_folder_becomes(tmp_path):
    catalogue = FolderSource(folder(tmp_path, users=USERS), feedback="rating", feedback_map="scale").load()
    assert [item.item_id for item in catalogue.items] == ["i1", "i2", "i3"]
    assert [item.text for item in catalogue.items] == ["One. first", "second", "Three"]
    assert [item.image for item in catalogue.items] == [tmp_path.resolve() / "a.png", None, None]
    assert all(item.video is item.audio is None for item in catalogue.items)
    assert catalogue.titles == ["One", "", "Three"]
    assert catalogue.text == TextFields(["title", "description"])
    assert catalogue.user_ids == ["u2", "u1"]
    log = catalogue.log
    # Sorted by user, time and row: i3 stands before i2 in the file, and both have time 3.
    assert log.user.tolist() == [0, 0, 0, 1, 1]
    assert log.item.tolist() == [2, 1, 0, 1, 0]
    assert log.time.tolist() == [3, 3, 5, 2, 2]
    assert log.weight.tolist() == [0.5, 0.75, 1, 0, 0.25]
    assert log.has_time
    assert [a.dtype.name for a in (log.user, log.item, log.time, log.weight)] == [*["int64"] * 2, "float64", "float32"]
    assert catalogue.user_categories.tolist() == [[1], [2]]
    assert catalogue.user_numbers.tolist() == [[1], [-1]]
    assert catalogue.category_sizes == [3]


def test_formats_give_the_same_catalogue(tmp_path):
    catalogues = []
    for suffix in ("csv", "parquet", "jsonl"):
        (tmp_path / suffix).mkdir()
        root = folder(tmp_path / suffix, without(ITEMS, "image"), users=USERS, suffix=suffix)
        catalogues.append(as_plain(FolderSource(root, feedback="rating", feedback_map="log1p").load()))
    assert catalogues[0] == catalogues[1] == catalogues[2]


def test_formats_may_be_mixed_and_ids_be_numbers(tmp_path):
    log = LOG | {"item_id": [1, 2, 3, 1, 2], "user_id": [7, 8, 7, 8, 7]}
    folder(tmp_path, None, log, suffix="parquet")
    (tmp_path / "items.csv").write_text("item_id,title\n1,x\n 2 ,y\n3,z\n")
    (tmp_path / "users.jsonl").write_text('{"user_id": 8, "age": 3}\n{"user_id": "7", "age": 1}\n')
    catalogue = FolderSource(tmp_path).load()
    assert [item.item_id for item in catalogue.items] == ["1", "2", "3"]
    assert catalogue.user_ids == ["7", "8"]
    assert catalogue.user_numbers.tolist() == [[-1], [1]]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ids_keep_their_spelling_under_names_of_one_s_own(tmp_path, suffix):
    ids = ["001", "1e5", "007", "7", "1.0"]
    titles = ["01", "2", "3.0", "4", "5"]
    folder(
        tmp_path, {"clip": ids, "name": titles}, {"who": ids, "clip": ids}, {"who": ids, "age": range(5)}, suffix=suffix
    )
    columns = {"item_id": "clip", "user_id": "who", "title": "name"}
    catalogue = FolderSource(tmp_path, columns=columns).load()
    assert [item.item_id for item in catalogue.items] == catalogue.user_ids == ids
    assert catalogue.titles == titles
    assert catalogue.log.item.tolist() == [0, 1, 2, 3, 4]
    assert catalogue.user_numbers.argsort(axis=0).tolist() == [[0], [1], [2], [3], [4]]


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=25),
    has_time=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_log_is_sorted_by_user_time_and_row(tmp_path_factory, rows, has_time):
    root = tmp_path_factory.mktemp("log")
    columns = {"user_id": [f"u{u}" for u, _, _ in rows], "item_id": [i for _, i, _ in rows]}
    times = {"timestamp": [t for _, _, t in rows]} if has_time else {}
    catalogue = FolderSource(
        folder(root, {"item_id": range(5)}, columns | times, suffix="parquet"), clean=Cleaning(duplicates="keep")
    ).load()
    first_seen = list(dict.fromkeys(u for u, _, _ in rows))
    assert catalogue.user_ids == [f"u{u}" for u in first_seen]
    expected = sorted((first_seen.index(u), t if has_time else row, row, i) for row, (u, i, t) in enumerate(rows))
    log = catalogue.log
    assert log.has_time == has_time
    assert list(zip(log.user, log.time, log.item, strict=True)) == [(u, t, i) for u, t, _, i in expected]
    assert (log.weight == 1).all()


@pytest.mark.parametrize(
    ("settings_", "values", "weights"),
    [
        ({}, [4, 0, 2], [1, 1, 1]),
        ({"feedback": "r", "feedback_map": "implicit"}, [4, 0, 2], [1, 1, 1]),
        ({"feedback": "r", "clean": Cleaning(min_feedback=0)}, [4, 0, 2], [1, 1, 1]),
        ({"feedback": "r", "feedback_map": "scale"}, [4, 0, 2], [1, 0, 0.5]),
        ({"feedback": "r", "feedback_map": "scale"}, [0, 0, 0], [0, 0, 0]),
        ({"feedback": "r", "feedback_map": "log1p"}, [0, 1, 3], np.log([1, 2, 4])),
        ({"feedback": "r", "feedback_map": "threshold", "threshold": 2}, [1.9, 2, 5], [0, 1, 1]),
        ({"feedback": "r", "feedback_map": "threshold", "threshold": 0}, [-1, 0, 1], [0, 1, 1]),
    ],
)
def test_feedback_maps(tmp_path, settings_, values, weights):
    log = {"user_id": ["u"] * 3, "item_id": ["i1"] * 3, "timestamp": [1, 2, 3], "r": values}
    catalogue = FolderSource(folder(tmp_path, log=log), **settings_).load()
    np.testing.assert_allclose(catalogue.log.weight, weights, rtol=1e-6)
    assert catalogue.log.weight.dtype == np.float32


def test_decimals_are_numbers(tmp_path):
    log = pl.DataFrame(LOG).with_columns(pl.col("rating", "timestamp").cast(pl.Decimal(10, 2))).to_dict()
    catalogue = FolderSource(
        folder(tmp_path, log=log, suffix="parquet"), feedback="rating", feedback_map="scale"
    ).load()
    assert catalogue.log.weight.tolist() == [0.5, 0.75, 1, 0, 0.25]


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_empty_names_of_files_are_no_files(tmp_path, empty):
    items = {"item_id": ["i1", "i2", "i3"], "video": [empty] * 3, "audio": ["s.wav", empty, empty]}
    catalogue = FolderSource(folder(tmp_path, items, suffix="parquet")).load()
    assert [item.video for item in catalogue.items] == [None] * 3
    assert [item.audio for item in catalogue.items] == [tmp_path.resolve() / "s.wav", None, None]
    assert catalogue.titles == ["i1", "i2", "i3"]
    assert [item.text for item in catalogue.items] == [None] * 3


def test_text_columns_are_the_ones_named_in_that_order(tmp_path):
    catalogue = FolderSource(folder(tmp_path), text=["description", "published", "title"]).load()
    assert [item.text for item in catalogue.items] == ["first. 1.5. One", "second. 2.5", "3.5. Three"]
    assert FolderSource(folder(tmp_path), text=[]).load().items[0].text is None


@pytest.mark.parametrize("name", ["published", "released"])
def test_the_time_of_publication_is_no_text(tmp_path, name):
    items = without(ITEMS, "published") | {name: ["2024-01-02", "", "2023-05-06T07:08:09Z"]}
    catalogue = FolderSource(folder(tmp_path, items), columns={"published": name}).load()
    assert catalogue.text == TextFields(["title", "description"])
    np.testing.assert_array_equal(catalogue.published_N, [1_704_153_600, np.nan, 1_683_356_889])


def test_users_are_those_of_the_log(tmp_path):
    users = {"user_id": ["u9", "u2"], "plan": ["x", "y"], "age": [1, 2]}
    catalogue = FolderSource(folder(tmp_path, users=users)).load()
    assert catalogue.user_ids == ["u2", "u1"]
    assert catalogue.user_categories.tolist() == [[1], [0]]
    assert catalogue.category_sizes == [2]
    assert catalogue.user_numbers.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (
            {"feedback_map": "square"},
            r"data\.feedback_map must be one of implicit, scale, log1p, threshold; got square",
        ),
        ({"feedback_map": "scale"}, r"data\.feedback_map=scale needs a column: set data\.feedback=COLUMN"),
        ({"feedback": "r"}, r"data\.feedback=r alone changes nothing.*set data\.feedback_map=scale"),
        ({"feedback": "r", "feedback_map": "threshold"}, r"needs a limit: set data\.threshold=NUMBER"),
    ],
)
def test_impossible_settings(tmp_path, settings_, message):
    with pytest.raises(UserError, match=message):
        FolderSource(tmp_path, **settings_)


@pytest.mark.parametrize(
    ("tables", "settings_", "message"),
    [
        ({"items": None}, {}, "has no items table"),
        ({"log": None}, {}, "has no interactions table"),
        ({"items": {"id": [1]}}, {}, "no column item_id"),
        ({"log": without(LOG, "user_id")}, {}, "no column user_id"),
        ({"log": without(LOG, "user_id", "item_id")}, {}, "no column user_id, item_id"),
        ({"items": {"item_id": []}}, {}, "items.csv is empty"),
        ({"log": {"user_id": [], "item_id": []}}, {}, "interactions.csv is empty"),
        (
            {"items": {"item_id": ["i1", "i2"]}},
            {},
            r"interactions\.csv: item_id 'i3' has no row in items \(1 such ids, 1 rows",
        ),
        ({"items": {"item_id": ["i1", "i2", "i3", "i1 "]}}, {}, r"items\.csv: item_id 'i1' names 2 rows"),
        ({"items": {"item_id": ["i1", "i2", "i3", None], "title": ["x"] * 4}}, {}, r"items\.csv: row 4 has no item_id"),
        ({"log": LOG | {"item_id": ["i1", None, "i1", "i1", "i1"]}}, {}, r"interactions\.csv: row 2 has no item_id"),
        ({"log": LOG | {"user_id": [" ", "u", "u", "u", "u"]}}, {}, r"interactions\.csv: row 1 has no user_id"),
        ({"users": {"user_id": ["u1", "u1"]}}, {}, r"users\.csv: user_id 'u1' names 2 rows"),
        ({"users": {"user_id": ["u1", None], "age": [1, 2]}}, {}, r"users\.csv: row 2 has no user_id"),
        ({"users": {"name": ["u1"]}}, {}, "no column user_id"),
        (
            {"log": LOG | {"timestamp": ["1", "2", "now", "4", "5"]}},
            {},
            r"timestamp must hold a finite number.*row 3 with 'now'.*remove",
        ),
        (
            {"log": LOG | {"timestamp": [1, 2, None, 4, 5]}},
            {},
            r"timestamp must hold a finite number.*1 rows do not, .*row 3 with None",
        ),
        ({"log": LOG | {"timestamp": [1.0, 2, float("nan"), 4, 5]}}, {}, "timestamp must hold a finite number"),
        ({"log": LOG | {"timestamp": [1.0, 2, float("inf"), 4, 5]}}, {}, "timestamp must hold a finite number"),
        (
            {},
            {"feedback": "stars", "feedback_map": "scale"},
            r"data\.feedback=stars: .*no such column\. It has user_id, item_id, timestamp, rating",
        ),
        (
            {"log": LOG | {"rating": [1, 2, "x", 4, 5]}},
            {"feedback": "rating", "feedback_map": "implicit"},
            r"rating must hold a finite number.*row 3 with 'x'.*Mend",
        ),
        (
            {"log": LOG | {"rating": [1, 2, None, 4, 5]}},
            {"feedback": "rating", "feedback_map": "implicit"},
            r"rating must hold a finite number.*row 3 with None",
        ),
        (
            {"log": LOG | {"rating": [1, 2, float("nan"), 4, 5]}},
            {"feedback": "rating", "feedback_map": "implicit"},
            "rating must hold a finite number",
        ),
        (
            {"log": LOG | {"rating": [1, -2, -3, 4, 5]}},
            {"feedback": "rating", "feedback_map": "implicit"},
            r"negative weight \(-3, in 2 rows\).*shift it",
        ),
        (
            {},
            {"text": ["title", "plot"]},
            r"data\.text=.* names plot, which the items table lacks\. The table has item_id",
        ),
        (
            {"items": ITEMS | {"image": [None, "../a.png", None]}},
            {},
            r"Column image names '../a.png', which lies outside",
        ),
    ],
)
def test_one_message_for_each_mistake(tmp_path, tables, settings_, message):
    folder(tmp_path, **tables)
    with pytest.raises(UserError, match=message):
        FolderSource(tmp_path, **settings_).load()


def test_root_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    folder(tmp_path / "mine")
    assert len(FolderSource("~/mine").load().items) == 3
