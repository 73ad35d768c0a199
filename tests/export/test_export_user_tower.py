"""avrec.export.user_tower and avrec.export.folder: a stranger's queries are the run's, and no file names a person."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import avrec
from avrec.batch import UserBatch
from avrec.errors import UserError
from avrec.export.user_tower import export_user_tower
from avrec.towers.history import HistoryAttention
from avrec.towers.ncf import NCF
from avrec.towers.score import Score
from avrec.towers.user_tower import MeanHistory, UserColumns, UserTower, UserVector

DIM, LONGEST = 8, 5
COLUMNS = [
    {"name": "plan", "values": ["free", "pro"]},
    {"name": "age", "mean": 30.0, "spread": 10.0},
    {"name": "flat", "mean": 0.0, "spread": 0.0},
]
USERS = {"person-anna": 1, "person-ben": 3, "person-cy": 4}
IDS = [*USERS, "person-nobody"]


def make_tower() -> UserTower:
    torch.manual_seed(0)
    attention = partial(HistoryAttention, depth=1, heads=2, max_history=LONGEST)
    tower = UserTower(attention, partial(NCF, hidden=(12,)), UserColumns([3], 2, width=3), num_users=4, dim=DIM)
    for parameter in tower.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return tower.eval()


TOWERS = {
    "UserTower": make_tower,
    "UserVector": lambda: UserVector(UserColumns([3], 2), num_users=4, dim=DIM),
    "MeanHistory": MeanHistory,
}
SCORE = Score(temperature=0.07, bias=-3.0)


def export(tower, folder: Path, users=USERS) -> Path:
    columns = COLUMNS if isinstance(tower, UserTower) else []
    return export_user_tower(tower, SCORE, folder, DIM, LONGEST, columns, users)


@pytest.fixture
def items(tmp_path, rng) -> tuple[Path, np.ndarray]:
    """Item vectors, as a run writes them."""
    item_ND = rng.standard_normal((20, DIM)).astype(np.float32)
    ids = [f"i{n}" for n in range(20)]
    pl.DataFrame({"item_id": ids, "vector": item_ND}).write_parquet(tmp_path / "items.parquet")
    return tmp_path / "items.parquet", item_ND


def one_query(tower, item_ND, history, times, values, row) -> np.ndarray:
    """The slow twin: one person at a time, no padding."""
    history, times = history[-LONGEST:], times[-LONGEST:]
    plan, age = {"free": 1, "pro": 2}.get(values.get("plan"), 0), (values["age"] - 30) / 10 if "age" in values else 0
    users = UserBatch(
        torch.tensor([row]),
        torch.tensor([[plan]]),
        torch.tensor([[age, 0.0]]),
        torch.tensor([history], dtype=torch.long),
        torch.ones(1, len(history), dtype=torch.bool),
        torch.tensor([times], dtype=torch.float64),
    )
    with torch.no_grad():
        return SCORE.scale(tower.last(users, torch.from_numpy(item_ND)))[0].numpy()


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("hashed", [True, False])
def test_queries_are_the_towers(tmp_path, items, rng, name, hashed):
    if name == "UserVector" and not hashed:
        pytest.skip("nothing is left of it")
    tower = TOWERS[name]()
    path, item_ND = items
    exported = avrec.load_user_tower(export(tower, tmp_path / "tower", USERS if hashed else None), path)
    histories = [rng.integers(20, size=n).tolist() for n in (3, 0, 9, 1)]
    times = [np.sort(rng.integers(10**9, size=len(history))).tolist() for history in histories]
    values = [{"plan": "pro", "age": 51.0}, {}, {"plan": "unheard of"}, {"age": 20, "flat": 7}]
    given = values if name == "UserTower" else None
    found = exported.query([[f"i{n}" for n in h] for h in histories], times, given, IDS)
    rows = [USERS.get(user_id, 0) if hashed else 0 for user_id in IDS]
    expected = [one_query(tower, item_ND, *person) for person in zip(histories, times, values, rows, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert found.dtype == np.float32
    by_vector = exported.query([item_ND[history] for history in histories], times, given, IDS)
    np.testing.assert_array_equal(found, by_vector)


def test_time_and_users_matter(tmp_path, items):
    exported = avrec.load_user_tower(export(make_tower(), tmp_path / "tower"), items[0])
    history = [["i1", "i2", "i3"]]
    plain = exported.query(history)
    assert np.abs(plain - exported.query(history, [[0, 1000, 10**6]])).max() > 1e-3
    assert np.abs(plain - exported.query(history, user_ids=["person-ben"])).max() > 1e-3
    np.testing.assert_array_equal(plain, exported.query(history, user_ids=["person-nobody"]))
    assert exported.query([]).shape == (0, DIM)
    missing = [exported.query(history, user_columns=[{"age": age}]) for age in (None, math.nan)]
    np.testing.assert_array_equal(missing[0], missing[1])
    np.testing.assert_array_equal(missing[0], plain)


@pytest.mark.parametrize("users", [None, USERS])
def test_no_file_names_a_person(tmp_path, users):
    folder = export(make_tower(), tmp_path / "tower", users)
    for path in folder.rglob("*"):
        assert b"person-" not in path.read_bytes(), path
    assert (folder / "user_ids.json").exists() == (users is not None)
    state = avrec.load_user_tower(folder).graph.tower.state_dict()
    assert len(state["user_table.weight"]) == 1 + len(users or ())


def test_the_same_person_has_another_key_in_each_export(tmp_path):
    keys = [json.loads((export(make_tower(), tmp_path / name) / "user_ids.json").read_text())["keys"] for name in "ab"]
    assert not set(keys[0]) & set(keys[1])


def test_a_tower_of_users_alone_needs_them(tmp_path):
    with pytest.raises(UserError, match="nothing is left to export. Add users=hashed"):
        export(TOWERS["UserVector"](), tmp_path / "tower", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([["i1"]], [[1.0], [2.0]]), "1 histories and 2 times"),
        (([["i1"]], [[1.0, 2.0]]), "History 0 has 1 items and 2 times"),
        (([["i1", "i99"]],), "item 'i99', which is in no items table"),
        (([np.zeros((2, 3))],), r"History 0 has shape \(2, 3\). Use vectors of 8 numbers"),
        (([["i1"]], None, [{"plam": "pro"}]), "no user column 'plam'.*plan, age, flat"),
        (([["i1"]], None, [{"age": "old"}]), "age='old' is no number"),
        (([["i1"]], None, [{"age": math.inf}]), "age=inf is not finite"),
        (([np.full((2, DIM), math.nan)],), "History 0 has a number that is not finite"),
        (([["i1"]], None, None, []), "1 histories and 0 user_ids"),
    ],
)
def test_mistakes_are_named(tmp_path, items, arguments, message):
    exported = avrec.load_user_tower(export(make_tower(), tmp_path / "tower"), items[0])
    with pytest.raises(UserError, match=message):
        exported.query(*arguments)


def test_a_table_of_items_that_is_none(tmp_path):
    folder = export(make_tower(), tmp_path / "tower")
    with pytest.raises(UserError, match="is no table of item_id and vector"):
        avrec.load_user_tower(folder, tmp_path / "nowhere.parquet")
    with pytest.raises(UserError, match="Load the tower with items=RUN/embeddings/items.parquet"):
        avrec.load_user_tower(folder).query([["i1"]])


def damage(folder: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "has no config.json: it is not an exported user tower. Use RUN/user_tower"),
        ("config.json", b"{", "could not be read as JSON"),
        ("config.json", b"[]", "holds a list, not a mapping"),
        ("config.json", b'{"model_type": "avrec_item_tower", "format": 1}', "This version reads 'avrec_user_tower'"),
        ("config.json", b'{"model_type": "avrec_user_tower", "format": 1}', r"is damaged \(KeyError: 'tower'\)"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", b"junk", "is damaged .* Export it again: avrec export"),
        ("user_ids.json", b"x", "could not be read as JSON"),
        ("user_ids.json", b'{"salt": "", "keys": ["a"]}', "user_ids.json is of another tower"),
    ],
)
def test_a_damaged_folder_is_named_in_a_sentence(tmp_path, name, content, message):
    folder = export(make_tower(), tmp_path / "tower")
    damage(folder, name, content)
    with pytest.raises(UserError, match=message) as found:
        avrec.load_user_tower(folder)
    assert "\n" not in str(found.value)


def test_nothing_but_an_export_is_replaced(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match="is there and is no exported tower"):
        export(make_tower(), folder)
    assert (folder / "letters.txt").read_text() == "dear"
    export(make_tower(), tmp_path / "tower")
    export(make_tower(), tmp_path / "tower")
