"""Batches against the same in dicts and loops, one window at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.batch import MODALITIES
from avrec.content.items import RawItem
from avrec.data.collate import Identity, ItemBatches, TrainBatches, UserBatches
from avrec.data.tables import Catalogue, Interactions
from avrec.data.windows import Sequences, WindowSampler

N, USERS = 9, 6


class Recorder:
    """Prepared content that tells an item by its number, and remembers what was read."""

    def __init__(self, present_N: Any) -> None:
        self.present_N = np.asarray(present_N, bool)
        self.reads: list[list[int]] = []

    def read(self, indices: Any) -> dict[str, Any]:
        assert self.present_N[indices].all(), "content of a missing modality was read"
        self.reads.append(indices.tolist())
        return {"number": indices.astype(np.int32), "twice": np.stack([indices, indices], axis=1).astype(np.float32)}


def catalogue_of(log: Interactions) -> Catalogue:
    rng = np.random.default_rng(1)
    items = [RawItem(f"i{n}") for n in range(N)]
    categories, numbers = rng.integers(0, 4, (USERS, 2)), rng.random((USERS, 3)).astype(np.float32)
    return Catalogue(Path(), items, [], [f"u{u}" for u in range(USERS)], log, categories, [4, 4], numbers)


def log_of(lengths: list[int], seed: int) -> Interactions:
    """User 0 has the first number of rows, and so on; times and weights have ties and zeros."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(lengths)), lengths)
    weight = rng.choice([0, 0.5, 1], len(user)).astype(np.float32)
    return Interactions(user, rng.integers(0, N, len(user)), np.cumsum(rng.integers(0, 3, len(user))) + 1.0, weight)


def naive_batch(sequences: Sequences, windows: list[list[int]]) -> dict[str, Any]:
    """What a training batch says, in items rather than in indices."""
    Q = max(stop - first for _, first, stop in windows)
    item, time, weight = (a.tolist() for a in (sequences.item, sequences.time, sequences.weight))
    everything = [item[row] for _, first, stop in windows for row in range(first, stop)]
    rows = []
    for user, first, stop in windows:
        start, end = int(sequences.starts[user]), int(sequences.starts[user + 1])
        history = range(first, stop - 1)
        pairs = {
            row - first: (item[row], weight[row])
            for row in range(first, stop)
            if weight[row] > 0 and (row > first or first == start)
        }
        rows.append(
            {
                "user": user + 1,
                "name": f"u{user}",
                "history": [(item[row], time[row]) for row in history],
                "blank": Q - 1 - len(history),
                "pairs": pairs,
                "own": {item[row] for row in range(start, end)} & set(everything),
            }
        )
    share = {i: item.count(i) / len(item) for i in set(everything)}
    log_q = {i: math.log(1 - (1 - p) ** len(everything)) if p < 1 else 0.0 for i, p in share.items()}
    return {"rows": rows, "log_q": log_q}


def in_items(batch: Any) -> dict[str, Any]:
    """The same of a batch; checks on the way that what is not present is blank."""
    index = batch.items.index_U.tolist()
    assert len(set(index)) == len(index)
    users = batch.users
    for tensor in (users.history_BL, users.history_time_BL):
        assert (tensor[~users.history_present_BL] == 0).all()
    assert (batch.weight_BQ[~batch.target_present_BQ] == 0).all()
    rows = []
    for b in range(len(users)):
        present = users.history_present_BL[b].tolist()
        length = sum(present)
        assert present == [True] * length + [False] * (len(present) - length), "not left-aligned"
        history = zip(users.history_BL[b, :length].tolist(), users.history_time_BL[b, :length].tolist(), strict=True)
        rows.append(
            {
                "user": users.user_B[b].item(),
                "name": batch.users_named[b],
                "history": [(index[u], time) for u, time in history],
                "blank": len(present) - length,
                "pairs": {
                    q: (index[batch.target_BQ[b, q]], batch.weight_BQ[b, q].item())
                    for q in batch.target_present_BQ[b].nonzero().flatten().tolist()
                },
                "own": {index[u] for u in batch.own_BU[b].nonzero().flatten().tolist()},
            }
        )
    return {"rows": rows, "log_q": dict(zip(index, batch.log_q_U.tolist(), strict=True))}


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=USERS, max_size=USERS).filter(any),
    L=st.integers(1, 5),
    B=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_training_batches_against_dicts(lengths, L, B, seed):
    log = log_of(lengths, seed)
    sequences = Sequences.of(log, np.ones(len(log), bool), USERS)
    present_NM = np.random.default_rng(seed).random((N, 2)) < 0.5
    content = {"text": Recorder(present_NM[:, 0]), "audio": Recorder(present_NM[:, 1])}
    users = UserBatches(catalogue_of(log), sequences.lengths() > 0, L)
    catalogue = catalogue_of(log)
    batches = TrainBatches(sequences, ItemBatches(content), users, catalogue.user_ids)
    targets = 0
    for windows in WindowSampler(sequences, L, B, seed):
        batch = batches[windows]
        got, expected = in_items(batch), naive_batch(sequences, windows.tolist())
        np.testing.assert_allclose(*[[d["log_q"][i] for i in sorted(got["log_q"])] for d in (got, expected)], rtol=1e-4)
        assert got["log_q"].keys() == expected["log_q"].keys()
        assert got["rows"] == expected["rows"]
        assert batch.users.categories_BC.tolist() == catalogue.user_categories[windows[:, 0]].tolist()
        assert batch.users.numbers_BR.tolist() == catalogue.user_numbers[windows[:, 0]].tolist()
        check_content(batch.items, content)
        targets += int(batch.target_present_BQ.sum())
    assert targets == (log.weight > 0).sum(), "each row that weighs something is a target once"


def check_content(batch, content):
    assert len(batch) == len(batch.index_U)
    for m, (modality, recorder) in enumerate(content.items()):
        having = [i for i in batch.index_U.tolist() if recorder.present_N[i]]
        assert batch.present_UM[:, m].tolist() == recorder.present_N[batch.index_U.numpy()].tolist()
        assert (modality in batch.content) == bool(having)
        if having:
            assert recorder.reads.pop() == having, "read in another order, or more than was wanted"
            assert batch.content[modality]["number"].tolist() == having
            assert batch.content[modality]["twice"].tolist() == [[i, i] for i in having]
        assert recorder.reads == []


def test_types():
    log = log_of([3, 0, 5, 1, 2, 7], 0)
    sequences = Sequences.of(log, np.ones(len(log), bool), USERS)
    items = ItemBatches({"vision": Recorder([True] * N)})
    users = UserBatches(catalogue_of(log), sequences.lengths() > 0, 4)
    batch = TrainBatches(sequences, items, users, [f"u{u}" for u in range(USERS)])[np.array([[0, 0, 3], [5, 12, 17]])]
    dtypes = {
        name: value.dtype
        for part in (batch, batch.users, batch.items)
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }
    whole, real, mask = torch.int64, torch.float32, torch.bool
    assert dtypes == {
        "target_BQ": whole,
        "target_present_BQ": mask,
        "weight_BQ": real,
        "own_BU": mask,
        "log_q_U": real,
        "user_B": whole,
        "categories_BC": whole,
        "numbers_BR": real,
        "history_BL": whole,
        "history_present_BL": mask,
        "history_time_BL": torch.float64,
        "index_U": whole,
        "present_UM": mask,
    }
    moved = batch.to("meta")
    assert moved.items.content["vision"]["number"].device.type == moved.users.user_B.device.type == "meta"
    assert moved.users_named == ["u0", "u5"]


@pytest.mark.parametrize("chosen", [[], [8], [3, 0, 5], list(range(N))])
def test_item_batches_keep_the_order_asked_for(chosen):
    present = np.random.default_rng(0).random((N, 3)) < 0.4
    content = {name: Recorder(present[:, m]) for m, name in enumerate(MODALITIES[:3])}
    batch = ItemBatches(content)(np.array(chosen, np.int64))
    assert batch.index_U.tolist() == chosen
    check_content(batch, content)


def test_identity_of_untrained_items_is_row_0():
    trained = np.array([True, False, True, False])
    identity = Identity(trained)
    assert identity.present_N.all()
    assert identity.read(np.array([3, 2, 1, 0]))["row"].tolist() == [0, 3, 0, 1]
    batch = ItemBatches({"identity": identity})(np.array([1, 2]))
    assert batch.content["identity"]["row"].tolist() == [0, 3]
    assert batch.present_UM.tolist() == [[True], [True]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=USERS, max_size=USERS),
    L=st.integers(1, 9),
    asked=st.lists(st.integers(0, USERS - 1), unique=True, max_size=USERS),
    train=st.lists(st.booleans(), min_size=USERS, max_size=USERS),
)
def test_latest_histories_against_loops(lengths, L, asked, train):
    log = log_of(lengths, 0)
    history = Sequences.of(log, np.ones(len(log), bool), USERS)
    batch = UserBatches(catalogue_of(log), np.array(train), L).latest(np.array(asked, np.int64), history)
    rows = [[row for row in range(len(log)) if log.user[row] == user][-L:] for user in asked]
    width = max([1, *map(len, rows)])
    blank = [[0] * (width - len(row)) for row in rows]
    assert len(batch) == len(asked)
    assert batch.user_B.tolist() == [user + 1 if train[user] else 0 for user in asked]
    assert batch.history_BL.tolist() == [log.item[row].tolist() + b for row, b in zip(rows, blank, strict=True)]
    assert batch.history_time_BL.tolist() == [log.time[row].tolist() + b for row, b in zip(rows, blank, strict=True)]
    assert batch.history_present_BL.tolist() == [[n < len(row) for n in range(width)] for row in rows]
    assert batch.history_present_BL.shape == (len(asked), width)
