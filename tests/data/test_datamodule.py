"""The data module: loaders, resuming, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from avrec.batch import ItemBatch, TrainBatch, UserBatch
from avrec.content.items import RawItem
from avrec.data.datamodule import TwoTowerData
from avrec.data.splits import ColdItems, LeaveLastOut, Random, Split, Temporal
from avrec.data.tables import Catalogue, Interactions
from avrec.errors import UserError

ITEMS, USERS = 20, 15


class Words:
    """A preprocess that only counts how often it learns."""

    modality = "text"

    def __init__(self):
        self.fits = 0

    def fit(self, items):
        self.fits += len(items)


class Prepared:
    def __init__(self):
        self.present_N = np.arange(ITEMS) % 3 > 0

    def read(self, indices):
        assert self.present_N[indices].all()
        return {"number": np.array(indices)}


class Prepare:
    def __init__(self):
        self.calls = []

    def __call__(self, items, preprocess, frozen=None):
        self.calls.append((len(items), preprocess, frozen))
        return Prepared()


def catalogue_of(users=USERS, rows=7, items=ITEMS):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users), rows)
    # The last items appear late, so that some of them are cold.
    item = np.minimum(rng.integers(0, items - 2, len(user)) + np.tile(np.arange(rows), users) // 3, items - 1)
    log = Interactions(user, item, np.tile(np.arange(rows), users) * 10.0 + user, np.ones(len(user), np.float32))
    none = np.zeros((users, 0))
    raw = [RawItem(f"i{n}") for n in range(items)]
    names = [f"u{u}" for u in range(users)]
    return Catalogue(Path(), raw, [""] * items, names, log, none.astype(np.int64), [], none.astype(np.float32))


class Tower(dict):
    """What an item tower says of its parts."""

    def parts(self):
        return dict(self)


def data_of(catalogue=None, splitter=None, parts=None, **settings):
    settings = {"users_per_batch": 4, "history_length": 3, **settings}
    data = TwoTowerData(catalogue or catalogue_of(), splitter or LeaveLastOut(), Prepare(), **settings)
    data.prepare(Tower({"text": (Words(), None), "identity": (None, None)} if parts is None else parts))
    return data


def as_plain(batch):
    """Items and users of a training batch, to compare."""
    index, users = batch.items.index_U, batch.users
    history = torch.where(users.history_present_BL, index[users.history_BL], -1).tolist()
    targets = torch.where(batch.target_present_BQ, index[batch.target_BQ], -1).tolist()
    return users.user_B.tolist(), index.tolist(), history, targets, batch.own_BU.tolist(), batch.log_q_U.tolist()


def test_prepares_once_what_was_asked_for():
    data = data_of()
    words, frozen = Words(), object()
    data.prepare(Tower({"text": (words, frozen), "identity": (None, None)}))
    assert data.prepare_content.calls[-1:] == [(ITEMS, words, frozen)]
    assert len(data.prepare_content.calls) == 2
    assert words.fits == int(data.trained_N.sum())
    assert list(data.items.content) == ["text", "identity"]
    rows = data.items(np.arange(ITEMS)).content["identity"]["row"]
    assert (rows > 0).tolist() == data.trained_N.tolist()


def test_training_covers_all_training_rows():
    data = data_of()
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(isinstance(batch, TrainBatch) for batch in batches)
    trained = [
        index for batch in batches for index in batch.items.index_U[batch.target_BQ][batch.target_present_BQ].tolist()
    ]
    assert sorted(trained) == sorted(data.catalogue.log.item[data.split.role == 0].tolist())


@pytest.mark.parametrize("which", ["val", "test"])
@pytest.mark.parametrize("splitter", [LeaveLastOut(), Temporal(0.2, 0.2)])
def test_ranking_loaders(which, splitter, monkeypatch):
    monkeypatch.setattr(TwoTowerData, "ITEMS_PER_BATCH", 6)
    monkeypatch.setattr(TwoTowerData, "USERS_PER_BATCH", 4)
    data = data_of(splitter=splitter, history_length=2)
    items, users = data.val_dataloader() if which == "val" else data.test_dataloader()
    item_batches, user_batches = list(items), list(users)
    assert len(item_batches) == len(items) == 4
    assert torch.cat([batch.index_U for batch in item_batches]).tolist() == list(range(ITEMS))
    assert all(isinstance(batch, ItemBatch) for batch in item_batches)
    assert all(isinstance(batch, UserBatch) for batch in user_batches)
    task, log, role = data.tasks[which], data.catalogue.log, data.split.role
    assert sum(map(len, user_batches)) == len(task)
    for number, user in enumerate(task.user_index_E):
        batch, row = user_batches[number // 4], number % 4
        known = log.item[(log.user == user) & (role < (1 if which == "val" else 2))]
        assert batch.history_BL[row][batch.history_present_BL[row]].tolist() == known[-2:].tolist()
        in_train = ((log.user == user) & (role == 0)).any()
        assert batch.user_B[row] == (user + 1 if in_train else 0)


def test_sampled_items_are_trained_ones(monkeypatch):
    data = data_of(splitter=Temporal(0.3, 0.3))
    trained = np.flatnonzero(data.trained_N).tolist()
    assert 0 < len(trained) < ITEMS
    assert data.sample_items().index_U.tolist() == trained
    monkeypatch.setattr(TwoTowerData, "ITEMS_PER_BATCH", 5)
    drawn = data.sample_items().index_U.tolist()
    assert len(drawn) == 5
    assert set(drawn) < set(trained)
    assert drawn == data_of(splitter=Temporal(0.3, 0.3)).sample_items().index_U.tolist()


@pytest.mark.parametrize("history", ["past", "all"])
def test_held_out_items_leave_no_trace_in_training_or_histories(history):
    class Learns(Words):
        def fit(self, items):
            self.learned = {int(item.item_id[1:]) for item in items}

    words = Learns()
    data = data_of(splitter=ColdItems(history=history), parts={"text": (words, None), "identity": (None, None)})
    held_out = set(np.flatnonzero(data.split.item_role_N).tolist())
    assert len(held_out) == 6
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            assert not held_out & set(batch.items.index_U.tolist())
            assert torch.isfinite(batch.log_q_U).all()
    assert words.learned == set(range(ITEMS)) - held_out
    assert not held_out & set(data.sample_items().index_U.tolist())
    assert not data.items(np.array(sorted(held_out))).content["identity"]["row"].any()
    for which in ("val", "test"):
        for users in data.user_batches(which):
            assert not held_out & set(users.history_BL[users.history_present_BL].tolist())


def test_histories_end_where_the_user_is_asked():
    data = data_of(splitter=Random(0.2, 0.2), history_length=9)
    log, users = data.catalogue.log, next(iter(data.user_batches("test")))
    for row, user in enumerate(data.tasks["test"].user_index_E):
        mine = log.user == user
        moment = log.time[mine & (data.split.role == 2)].min()
        known = log.item[mine & (data.split.role < 2) & (log.time <= moment)]
        assert users.history_BL[row][users.history_present_BL[row]].tolist() == known.tolist()


def test_a_split_without_training_rows_is_refused():
    with pytest.raises(UserError, match="leaves none of the 105 interactions for training"):
        data_of(splitter=lambda catalogue: Split((np.arange(105) % 2 + 1).astype(np.int8)))


def test_order_is_the_seeds_and_the_epochs():
    def order(seed, epoch):
        loader = data_of(seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [as_plain(batch) for batch in loader]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_goes_on_in_the_middle_of_an_epoch(workers):
    loader = data_of(seed=3, loader_workers=workers).train_dataloader()
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    first = [as_plain(next(batches)) for _ in range(3)]
    # Workers are ahead of what was used; the state must not be.
    state = loader.state_dict()
    rest = [as_plain(batch) for batch in batches]
    assert state == {"epoch": 2, "first_batch": 3, "seed": 3}
    assert len(first + rest) == len(loader)

    other = data_of(seed=99).train_dataloader()
    other.load_state_dict(state)
    other.sampler.set_epoch(2)
    assert other.state_dict() == state
    assert [as_plain(batch) for batch in other] == rest
    assert other.state_dict() == {"epoch": 2, "first_batch": len(loader), "seed": 3}
    other.sampler.set_epoch(3)
    assert len([as_plain(batch) for batch in other]) == len(loader) == len(other)


def test_a_state_that_was_loaded_is_the_state():
    loader = data_of().train_dataloader()
    state = {"epoch": 1, "first_batch": 2, "seed": 0}
    loader.load_state_dict(state)
    assert loader.state_dict() == state


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_leave_the_random_numbers_of_training_alone(workers):
    data = data_of(loader_workers=workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"users_per_batch": 0}, "`users_per_batch` must be an integer ≥ 1; got 0"),
        ({"history_length": -1}, "`history_length` must be an integer ≥ 1; got -1"),
        ({"loader_workers": -1}, "`loader_workers` must be an integer ≥ 0; got -1"),
        (
            {"catalogue": catalogue_of(rows=2)},
            r"val split has no user to ask for: the log has 30 interactions of 15 users",
        ),
        (
            {"catalogue": catalogue_of(rows=1)},
            r"The (val|test) split has no user .* Use more interactions, or another",
        ),
        ({"catalogue": catalogue_of(rows=1), "splitter": Temporal(0.01, 0.01)}, "split=temporal: the log has too few"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(UserError, match=message):
        data_of(**settings)
