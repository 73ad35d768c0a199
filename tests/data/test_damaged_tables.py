"""Damaged tables, made here: each is refused in one sentence, or read as the sound one is."""

import gzip
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from avrec.data.sources.folder import FolderSource
from avrec.data.tables import Catalogue
from avrec.errors import UserError

ITEMS = {
    "item_id": [f"i{n}" for n in range(8)],
    "title": [f"Film {n}, or: „{n}“" for n in range(8)],
    "published": [1.5e9 + n for n in range(8)],
}
LOG = {
    "user_id": [f"u{n % 5}" for n in range(40)],
    "item_id": [f"i{n * 3 % 8}" for n in range(40)],
    "timestamp": [1_600_000_000 + n for n in range(40)],
    "rating": [1.0 + n % 5 for n in range(40)],
}
USERS = {"user_id": [f"u{n}" for n in range(5)], "plan": list("abcab"), "age": [20, 30, 40, 50, 60]}
TABLES = {"items": ITEMS, "interactions": LOG, "users": USERS}

Damage = Callable[[bytes], bytes]


def without_line(data: bytes, number: int) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[:number] + lines[number + 1 :])


def flipped(data: bytes, seed: int, part: slice = slice(None)) -> bytes:
    draw, places = random.Random(seed), range(len(data))[part]
    changed = bytearray(data)
    for place in draw.sample(places, min(8, len(places))):
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def replaced(old: bytes, new: bytes, count: int = 1) -> Damage:
    def damage(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, count)

    return damage


def to_utf16(data: bytes) -> bytes:
    return data.decode().encode("utf-16")


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8

ANY: dict[str, Damage] = {
    "empty": lambda data: b"",
    "one NUL": lambda data: b"\0",
    "all NUL": lambda data: bytes(len(data)),
    "a picture": lambda data: PNG,
    "random bytes": lambda data: random.Random(3).randbytes(2000),
    "a web page": lambda data: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "white space": lambda data: b" \n\t\n  \n",
}
TEXT: dict[str, Damage] = {
    "UTF-16": to_utf16,
    "NULs inside": lambda data: data[:40] + b"\0\0\0" + data[40:],
    "Latin-1": lambda data: data.replace("„".encode(), b"\xe4").replace(b"u1", b"\xfc1"),
    "cut in the header": lambda data: data[:5],
    "git conflict": lambda data: b"<<<<<<< HEAD\n" + data + b"=======\n" + data + b">>>>>>> theirs\n",
}
CSV: dict[str, Damage] = {
    "header alone": lambda data: data.splitlines(keepends=True)[0],
    "no header": lambda data: without_line(data, 0),
    "header twice": lambda data: data.splitlines(keepends=True)[0] + data,
    "double column": replaced(b"_id,", b"_id,user_id,item_id,"),
    "a field too many": lambda data: data.replace(b"\n", b",x\n", 4).replace(b",x\n", b"\n", 1),
    "a field too few": lambda data: data.rsplit(b",", 1)[0] + b"\n",
    "cut in an id": lambda data: data[: data.rindex(b"\n", 0, -1) + 2],
    "unclosed quote": lambda data: data.replace(b"\n", b'\n"', 3).replace(b'\n"', b"\n", 2),
    "semicolons": lambda data: data.replace(b",", b";"),
    "quoted whole lines": lambda data: b"".join(b'"%s"\n' % line for line in data.splitlines()),
    "empty id": lambda data: data.splitlines(keepends=True)[0] + b"," + data.split(b"\n", 1)[1].split(b",", 1)[1],
}
JSONL: dict[str, Damage] = {
    "cut": lambda data: data[:-20],
    "one array": lambda data: b"[" + b",".join(data.splitlines()) + b"]",
    "rows of arrays": lambda data: b"[1, 2]\n[3, 4]\n",
    "numbers": lambda data: b"1\n2\n3\n",
    "no commas": lambda data: data.replace(b",", b""),
    "nested": lambda data: data.replace(b'"item_id":"i0"', b'"item_id":{"a":1}').replace(b'"u0"', b'["u0"]'),
    "single quotes": lambda data: data.replace(b'"', b"'"),
    "a broken line": lambda data: data + b'{"item_id": \n',
}
PARQUET: dict[str, Damage] = {
    "cut": lambda data: data[: len(data) // 2],
    "no footer": lambda data: data[:-8],
    "magic alone": lambda data: b"PAR1PAR1",
    "footer size": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "no magic": lambda data: b"XXXX" + data[4:-4] + b"XXXX",
    **{f"flipped footer {n}": lambda data, n=n: flipped(data, n, slice(-200, -8)) for n in range(4)},  # type: ignore[misc]
}
GZIP: dict[str, Damage] = {
    "cut": lambda data: data[: len(data) // 2],
    "not zipped": gzip.decompress,
    "wrong sum": lambda data: data[:-8] + bytes(8),
    "zlib": lambda data: zlib.compress(gzip.decompress(data)),
    **{f"flipped {n}": lambda data, n=n: flipped(data, n, slice(10, -8)) for n in range(4)},  # type: ignore[misc]
}
BY_FORM = {
    "csv": {**ANY, **TEXT, **CSV},
    "jsonl": {**ANY, **TEXT, **JSONL},
    "parquet": {**ANY, **PARQUET},
    "csv.gz": {**ANY, **GZIP},
}
READ_ALL_THE_SAME = {
    ("csv.gz", "not zipped"): "the content decides, not the name",
    ("csv.gz", "zlib"): "the other wrapping of the same compression",
}
READ_WITH_A_DIFFERENCE = {
    ("items", "NULs inside"): "text may hold any character",
    ("users", "NULs inside"): "a number with NULs is a category",
    ("items", "a field too few"): "a missing last cell is an empty one",
    ("users", "a field too few"): "a missing last cell is an empty one",
    ("users", "cut in an id"): "a user of the log without a row has unknown columns",
    ("users", "header alone"): "the same, for all users",
    ("users", "nested"): "the same, for one",
}
CORPUS = [(form, name, what) for form, kinds in BY_FORM.items() for name in TABLES for what in kinds]


def write(root: Path, form: str) -> None:
    for name, columns in TABLES.items():
        table, path = pl.DataFrame(columns), root / f"{name}.{form}"
        if form == "csv.gz":
            path.write_bytes(gzip.compress(table.write_csv().encode(), mtime=0))
        else:
            {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[form](path)


def plain(catalogue: Catalogue) -> list[object]:
    log = catalogue.log
    arrays = (log.user, log.item, log.time, log.weight, catalogue.published_N)
    users = (catalogue.user_ids, catalogue.user_categories.tolist(), catalogue.user_numbers.tolist())
    return [catalogue.items, users, [array.tolist() for array in arrays]]


def load(root: Path) -> Catalogue:
    return FolderSource(root, feedback="rating", feedback_map="implicit").load()


def outcome(root: Path) -> tuple[list[object] | None, str]:
    """What was read, or what was said instead."""
    try:
        return plain(load(root)), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture(scope="module", params=BY_FORM)
def sound(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write(root, request.param)
    return request.param, root, plain(load(root))


def test_damaged_tables_are_refused_or_read_as_the_sound_ones(sound, tmp_path):
    form, root, expected = sound
    tried = 0
    for name in TABLES:
        path = root / f"{name}.{form}"
        good = path.read_bytes()
        for what, damage in BY_FORM[form].items():
            bad = damage(good)
            if bad == good:
                continue
            path.write_bytes(bad)
            tried += 1
            found, said = outcome(root)
            if found is None:
                assert "\n" not in said
                assert str(root) in said
            elif (name, what) in READ_WITH_A_DIFFERENCE:
                assert found != expected
            else:
                assert (form, what) in READ_ALL_THE_SAME, (form, name, what)
                assert found == expected
        path.write_bytes(good)
    assert tried >= 30


def test_how_many_there_are():
    assert len(CORPUS) >= 150
