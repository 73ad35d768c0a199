"""Columns of the tables as labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from avrec.data.columns import column, kinds
from avrec.data.sources.folder import FolderSource
from avrec.errors import UserError


@pytest.fixture
def catalogue(tmp_path: Path):
    items = {
        "item_id": [f"i{n}" for n in range(60)],
        "title": [f"T{n}" for n in range(60)],
        "genre": ["Fun | Air", "Love"] * 30,
        "region": ["EU", ""] * 30,
        "year": [1960 + n if n else None for n in range(60)],
        "code": [f"code {n}" for n in range(60)],
        "tags": [f"a{n % 8} b{n // 8}" for n in range(60)],
    }
    pl.DataFrame(items).write_csv(tmp_path / "items.csv")
    log = {"user_id": [f"u{n % 7}" for n in range(60)], "item_id": items["item_id"], "timestamp": list(range(60))}
    pl.DataFrame(log).write_csv(tmp_path / "interactions.csv")
    users = {"user_id": ["u3", "u0", "stranger"], "country": ["DE", "FR", "IT"], "age": [30, 20, 99]}
    pl.DataFrame(users).write_csv(tmp_path / "users.csv")
    return FolderSource(tmp_path).load()


def test_values_of_a_list_are_apart(catalogue):
    assert column(catalogue, "items.genre", "x")[:2] == [("Fun", "Air"), ("Love",)]
    assert column(catalogue, "items.region", "x")[:2] == [("EU",), ()]
    assert column(catalogue, "items.tags", "x")[:2] == [("a0", "b0"), ("a1", "b0")]
    assert column(catalogue, "items.year", "x")[:2] == [(), ("1961",)]


def test_user_columns_stand_by_user_index(catalogue):
    by_user = dict(zip(catalogue.user_ids, column(catalogue, "users.country", "x"), strict=True))
    assert by_user == {"u0": ("FR",), "u3": ("DE",)} | {f"u{n}": () for n in (1, 2, 4, 5, 6)}
    assert column(catalogue, "users.age", "x")[catalogue.user_ids.index("u3")] == ("30",)


def test_numbers_of_many_values_come_in_quarters(catalogue):
    labels = kinds(catalogue, "items.year", "x")
    assert labels[0] == ()
    names, counts = np.unique([row[0] for row in labels[1:]], return_counts=True)
    assert names.tolist() == ["1975.5 to 1990", "1990 to 2004.5", "above 2004.5", "up to 1975.5"]
    assert counts.sum() == 59
    assert counts.min() >= 14
    assert kinds(catalogue, "users.age", "x") == column(catalogue, "users.age", "x")


def test_what_cannot_be_measured_by_is_refused(catalogue):
    with pytest.raises(UserError, match=r"evaluation.slices: there is no column items.gender. Use one of items.genre"):
        kinds(catalogue, "items.gender", "evaluation.slices")
    with pytest.raises(UserError, match="items.code has 60 different values, and at most 40"):
        kinds(catalogue, "items.code", "x")
    with pytest.raises(UserError, match="there is no column genre"):
        column(catalogue, "genre", "x")


def test_numbers_that_are_nearly_equal_stay_apart(catalogue):
    frame = pl.DataFrame({"zip": [1234560 + n % 4 for n in range(60)], "price": [0.5, 2.0, float("nan")] * 20})
    frame = frame.with_columns(price32=pl.col("price").cast(pl.Float32), flag=pl.col("price") > 1)
    there = replace(catalogue, item_columns=frame)
    assert {row[0] for row in kinds(there, "items.zip", "x")} == {"1234560", "1234561", "1234562", "1234563"}
    for name in ("items.price", "items.price32"):
        assert column(there, name, "x")[:3] == [("0.5",), ("2",), ()]
    assert column(there, "items.flag", "x")[:2] == [("false",), ("true",)]


def test_the_text_of_a_list_is_a_value_where_it_is_asked_for(catalogue):
    there = replace(catalogue, item_columns=pl.DataFrame({"artist": ["AC/DC"] * 60}))
    assert column(there, "items.artist", "x")[0] == ("AC", "DC")
    assert column(there, "items.artist", "x", whole=True)[0] == ("AC", "DC", "AC/DC")
