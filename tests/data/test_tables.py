"""Tables: reading, checking, numbering."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from avrec.content.items import RawItem, TextFields
from avrec.data.tables import (
    Catalogue,
    Interactions,
    Table,
    check_not_empty,
    encode_user_columns,
    find_table,
    ids_of,
    inside,
    numbers_of,
    scan,
)
from avrec.errors import UserError

TABLE = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", None], "year": [1999, None]})


def write(table, path):
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    writers = {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}
    writers["tsv"] = lambda file: table.write_csv(file, separator="\t")
    writers[plain.suffix[1:]](plain)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()


def read_table(root, name, required, optional=False):
    """Find, scan, need, collect: what a source does with a table."""
    path = find_table(root, name, optional)
    if path is None:
        return None
    table = scan(path).need(required).collect()
    check_not_empty(table, path)
    return table


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_reads_each_format_alike(tmp_path, suffix):
    write(TABLE, tmp_path / f"items.{suffix}")
    assert read_table(tmp_path, "items", ["item_id"]).equals(TABLE)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "jsonl.gz"])
def test_a_path_is_no_pattern(tmp_path, suffix):
    for folder, rows in (("mine[1]", TABLE), ("mine1", TABLE[:1])):
        (tmp_path / folder).mkdir()
        write(rows, tmp_path / folder / f"items.{suffix}")
    assert read_table(tmp_path / "mine[1]", "items", ["item_id"]).equals(TABLE)


def test_columns_get_avrec_s_names_and_what_is_in_the_way_goes():
    table = Table(pl.LazyFrame({"uid": [1], "user_id": ["old"], "n": [2]}), Path("log.csv"))
    assert table.renamed({"user_id": "uid", "title": "absent"}).collect().to_dicts() == [{"user_id": 1, "n": 2}]
    assert table.renamed({"user_id": "user_id"}).collect().to_dicts() == [{"uid": 1, "user_id": "old", "n": 2}]


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], ["1", " 2.0 "], [True, 2]])
def test_numbers_may_be_spelt(values):
    column = pl.Series(values, strict=False)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    assert numbers_of(column, "x", "Mend.").tolist() == [1, 2]


@pytest.mark.parametrize("bad", ["now", None, "nan", "inf", ""])
def test_a_number_that_is_none_is_named_by_its_row(bad):
    message = r"column x must hold a finite .* 2 rows do not, the first is row 2 with .*Mend it"
    with pytest.raises(UserError, match=message):
        numbers_of(pl.Series(["1", bad, "3", bad]), "column x", "Mend it.")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            r"has no items table\. It must hold exactly one of items\.csv, items\.tsv, .*\.csv\.gz",
        ),
        ({"items.csv": b"item_id\n1\n", "items.jsonl": b'{"item_id": 1}\n'}, r"has 2 files items table.*exactly one"),
        ({"items.parquet": b"garbage" * 99}, r"items\.parquet could not be read as parquet: .+ Repair the file"),
        ({"items.csv": b"item_id,title\n1,2\n1,2,3,4\n"}, r"items\.csv could not be read as csv: .+ Repair the file"),
        ({"items.csv": b'item_id,title\n1,"2\n1,2\n'}, r"items\.csv could not be read as csv: .+ Repair the file"),
        (
            {"items.csv": "item_id,title\n1,café\n".encode("cp1252")},
            r"items\.csv is not in UTF-8: line 2 holds the byte 0xe9\. Save it as UTF-8",
        ),
        ({"items.csv": "item_id,title\n".encode("utf-16")}, r"not in UTF-8: line 1 holds the byte 0xff\. Save it"),
        ({"items.csv.gz": gzip.compress(b"item_id\n\xe9\n")}, r"items\.csv\.gz is not in UTF-8\. Save it as UTF-8"),
        ({"items.jsonl": b'{"item_id": 1\nxx'}, r"items\.jsonl could not be read as jsonl: .+ Repair the file"),
        ({"items.jsonl": b"[1, 2]\n"}, r"items\.jsonl could not be read as jsonl: .+ Repair the file"),
        ({"items.csv": b""}, r"items\.csv could not be read as csv: .+ Repair the file"),
        ({"items.parquet": b""}, r"items\.parquet could not be read as parquet: .+ Repair the file"),
        ({"items.jsonl": b""}, r"items\.jsonl could not be read as jsonl: .+ Repair the file"),
        ({"items.csv": b"item_id,title\n"}, r"items\.csv is empty: .*At least one row"),
        (
            {"items.csv": b"id,title\n1,x\n"},
            r"no column item_id\. It has id, title\. Rename .* to item_id, or say .* data\.columns\.item_id=NAME",
        ),
        (
            {"items.csv": b"item_id;title\n1;x, y\n"},
            r"separates its columns by semicolons: 'item_id;title'\. A csv does so by commas, a tsv by tabs: save it",
        ),
        ({"items.csv": b"item_id\ttitle\n1\tx\n"}, r"separates its columns by tabs: .* save it as one of them"),
        ({"items.tsv": b"item_id,title\n1,x\n"}, r"separates its columns by commas: .* save it as one of them"),
    ],
)
def test_one_message_for_each_mistake(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path, "items", ["item_id"])


def test_root_must_be_a_folder(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=rf"data\.root={root} is not a folder\. It must be the folder that holds"):
            read_table(root, "items", ["item_id"])


def test_an_optional_table_may_be_missing_but_not_broken(tmp_path):
    assert read_table(tmp_path, "users", ["user_id"], optional=True) is None
    (tmp_path / "users.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match="no column user_id"):
        read_table(tmp_path, "users", ["user_id"], optional=True)


@pytest.mark.parametrize("header", ["item_id,title", "\ufeffitem_id,title"])
@pytest.mark.parametrize("ids", [["007", "7", "12"], ["1.0", "1.00", "2"], [" 7 ", "8", "abc"]])
def test_ids_keep_their_spelling(tmp_path, header, ids):
    (tmp_path / "items.csv").write_text("\n".join([header, *(f"{item_id},x" for item_id in ids)]) + "\n")
    table = read_table(tmp_path, "items", ["item_id"])
    assert ids_of(table, "item_id", "items").to_list() == [item_id.strip() for item_id in ids]


def test_ids_are_text_without_space():
    table = pl.DataFrame({"n": [3, 12], "s": ["\ta ", "b c"]})
    assert ids_of(table, "n", "t").to_list() == ["3", "12"]
    assert ids_of(table, "s", "t").to_list() == ["a", "b c"]


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_an_empty_id_is_named_by_its_row(empty):
    with pytest.raises(UserError, match=r"items: row 2 has no item_id\. Every row needs one; fill it in or remove"):
        ids_of(pl.DataFrame({"item_id": ["a", empty, "b"]}), "item_id", "items")


def test_double_ids_are_counted():
    ids_of(pl.DataFrame({"item_id": ["a", "b"]}), "item_id", "items", unique=True)
    message = r"items: item_id 'a' names 3 rows \(2 such ids in all\)\. Each item_id may stand once; merge or rename"
    with pytest.raises(UserError, match=message):
        ids_of(pl.DataFrame({"item_id": ["a", "b", "a", "c", "b", "a"]}), "item_id", "items", unique=True)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        (TextFields(["a", "b"]), ["x. y", "z", None]),
        (TextFields(["b", "n", "a"]), ["y. 1. x", "z", None]),
        (TextFields(["a", "n"], "{a}: {n}!"), ["x: 1!", None, None]),
        (TextFields(["b"], "say {b} {b}"), ["say y y", "say z z", None]),
        (TextFields(), [None] * 3),
    ],
)
def test_text_is_joined_in_order_or_put_into_a_template(fields, texts):
    table = pl.DataFrame({"a": ["x ", None, " "], "b": ["y", "z", None], "n": [1, None, None]})
    assert [fields.of(row) for row in table.iter_rows(named=True)] == texts


def test_user_columns():
    users = pl.DataFrame(
        {
            "user_id": ["a", "b", "c", "not in users"],
            "plan": [None, "pro", "free", None],
            "age": [40, 20, None, None],
            "constant": [5.0, 5.0, 5.0, None],
            "empty": pl.Series([None] * 4, dtype=pl.Float64),
            "nothing": pl.Series([None] * 4, dtype=pl.Null),
            "adult": [False, True, None, None],
        }
    )
    codes, sizes, numbers, columns = encode_user_columns(users)
    # Categorical: plan, nothing, adult. Codes are sorted.
    assert codes.tolist() == [[0, 0, 1], [2, 0, 2], [1, 0, 0], [0, 0, 0]]
    assert codes.dtype == np.int64
    assert sizes == [3, 1, 3]
    # Numeric: age (mean 30, spread 10), constant, empty.
    np.testing.assert_allclose(numbers, [[1, 0, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert numbers.dtype == np.float32
    assert columns == [
        {"name": "plan", "values": ["free", "pro"]},
        {"name": "age", "mean": 30.0, "spread": 10.0},
        {"name": "constant", "mean": 0.0, "spread": 0.0},
        {"name": "empty", "mean": 0.0, "spread": 0.0},
        {"name": "nothing", "values": []},
        {"name": "adult", "values": ["false", "true"]},
    ]


def test_no_user_table():
    codes, sizes, numbers, columns = encode_user_columns(pl.DataFrame({"user_id": ["a", "b"]}))
    assert (codes.shape, sizes, numbers.shape, columns) == ((2, 0), [], (2, 0), [])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_none_count_as_missing(value):
    users = pl.DataFrame({"user_id": ["a", "b", "c"], "age": [1.0, value, 3.0]})
    np.testing.assert_allclose(encode_user_columns(users)[2], [[-1], [0], [1]])


def test_files_stay_inside(tmp_path):
    root = tmp_path / "catalogue"
    root.mkdir()
    (tmp_path / "secret.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    assert inside(root, " media/a.png ", "image") == root / "media/a.png"
    assert inside(root, "media/../a.png", "image") == root / "a.png"
    assert inside(root, None, "image") is inside(root, " ", "image") is None
    for value in ("../secret.png", str(tmp_path / "secret.png"), "/etc/passwd", "link.png", "../catalogue2/a.png"):
        with pytest.raises(UserError, match=f"Column image names '{value}', .*outside .* must be relative"):
            inside(root, value, "image")


@pytest.mark.parametrize(
    ("item", "modalities"),
    [
        (RawItem("a"), ["identity"]),
        (RawItem("a", text="x"), ["text", "identity"]),
        (RawItem("a", image="x"), ["vision", "identity"]),
        (RawItem("a", video="x"), ["vision", "audio", "identity"]),
        (RawItem("a", audio="x"), ["audio", "identity"]),
    ],
)
def test_a_catalogue_knows_what_it_has(tmp_path, item, modalities):
    none = np.zeros(0)
    catalogue = Catalogue(tmp_path, [RawItem("z"), item], ["", ""], [], Interactions(none, none, none, none), none)
    assert [m for m in ("text", "vision", "audio", "identity", "smell") if catalogue.has(m)] == modalities
