"""The batch contract against a double loop that encodes every position: same loss, same gradients.

Covers avrec.data.collate, avrec.data.windows, avrec.towers.{item_tower,user_tower,score}, avrec.objectives.pairs.
The towers run in float64 in both; only the objective's scores are float32.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avrec.batch import TrainBatch, UserBatch
from avrec.content.items import RawItem
from avrec.data.collate import Identity, ItemBatches, TrainBatches, UserBatches
from avrec.data.tables import Catalogue, Interactions
from avrec.data.windows import Sequences
from avrec.objectives.log_sigmoid import LogSigmoid
from avrec.objectives.pairs import pairs_of
from avrec.towers.encoders.audio import AudioEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import ConcatFusion
from avrec.towers.history import HistoryAttention
from avrec.towers.item_tower import ItemTower
from avrec.towers.ncf import NCF
from avrec.towers.score import Score
from avrec.towers.user_tower import UserColumns, UserTower

N, USERS, D, L = 14, 6, 8, 4


class Fake:
    """Prepared content in memory."""

    def __init__(self, present_N: Any, arrays: dict[str, Any]) -> None:
        self.present_N = present_N
        self.arrays = arrays

    def read(self, indices: Any) -> dict[str, Any]:
        assert self.present_N[indices].all(), "a missing modality's content must not be read"
        return {name: array[indices] for name, array in self.arrays.items()}


class Model(nn.Module):
    """Both towers and the score, small, without a random part: no dropout, nobody unknown at random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        text = TextEncoder(width=8, depth=1, heads=2, vocab_size=300, max_tokens=12)
        text.preprocess.fit([RawItem("a", "some words to learn from")])
        encoders = {
            "text": text,
            "vision": VisionEncoder(size=32, video_frames=2),
            "audio": AudioEncoder(seconds=0.6, width=8, depth=1, heads=2),
            "identity": IdentityEncoder(N, 8, unknown_rate=0.0),
        }
        self.items = ItemTower(encoders, lambda m, d: ConcatFusion(m, d, 12, dropout=0.0), D, modality_dropout=0.0)
        self.users = UserTower(
            lambda dim: HistoryAttention(dim, 1, 2, L, dropout=0.0),
            lambda dim, columns: NCF(dim, columns, (8,), dropout=0.0),
            UserColumns((4,), 1),
            USERS,
            D,
            unknown_rate=0.0,
        )
        self.score = Score(0.2, -1.0)
        # What starts at zero must have its say too.
        for weight in (self.users.ncf.join.weight, self.items.fusion.mean.logit_M):
            nn.init.normal_(weight, std=0.3)
        nn.init.normal_(self.users.attention.position_bias.weight, std=0.3)
        nn.init.normal_(self.users.attention.time_bias.weight, std=0.3)


def make_content(rng: np.random.Generator, model: Model, trained_N: Any) -> dict[str, Any]:
    encoders: Any = model.items.encoders
    frames, mel = encoders["vision"].preprocess.arrays()["frames"].shape, encoders["audio"].preprocess.arrays()
    longest, mels = mel["log_mel"].shape
    tokens = rng.integers(2, 200, size=(N, 12)).astype(np.int32)
    tokens[np.arange(12) >= rng.integers(1, 13, size=N)[:, None]] = 0
    slots = rng.random((N, frames[0])) < 0.6
    slots[:, 0] = True
    has = [rng.random(N) < 0.7 for _ in range(3)]
    pictures = rng.integers(0, 255, size=(N, *frames)).astype(np.uint8)
    sound = rng.normal(size=(N, longest, mels)).astype(np.float16)
    length = rng.integers(1, longest + 1, size=N).astype(np.int32)
    return {
        "text": Fake(has[0], {"tokens": tokens}),
        "vision": Fake(has[1], {"frames": pictures, "frame_present": slots}),
        "audio": Fake(has[2], {"log_mel": sound, "length": length}),
        "identity": Identity(trained_N),
    }


def make_batches(seed: int, model: Model) -> TrainBatches:
    """Random sequences with repeated items, weights of zero and a user of one interaction."""
    rng = np.random.default_rng(seed)
    user = np.sort(np.concatenate([np.arange(USERS), rng.integers(USERS - 1, size=36)]))
    item = rng.integers(N - 2, size=len(user))
    weight = np.where(rng.random(len(user)) < 0.15, 0, rng.random(len(user))).astype(np.float32)
    log = Interactions(user, item, 1.7e9 + np.cumsum(rng.integers(0, 5000, len(user))).astype(np.float64), weight)
    catalogue = Catalogue(
        Path(),
        [RawItem(str(i)) for i in range(N)],
        [""] * N,
        [str(u) for u in range(USERS)],
        log,
        rng.integers(4, size=(USERS, 1)),
        [4],
        rng.normal(size=(USERS, 1)).astype(np.float32),
    )
    content = make_content(rng, model, np.bincount(log.item, minlength=N) > 0)
    return TrainBatches(
        Sequences.of(log, np.ones(len(log), bool), USERS),
        ItemBatches(content),
        UserBatches(catalogue, np.arange(USERS) != 1, L),
        catalogue.user_ids,
    )


def make_windows(maker: TrainBatches) -> Any:
    """A history's start, the end of a longer one, a short one, a single interaction, and a user met twice."""
    starts = maker.sequences.starts
    windows = [
        [0, starts[0], min(starts[0] + L + 1, starts[1])],
        [2, max(starts[2], starts[3] - 3), starts[3]],
        [1, starts[1], min(starts[1] + 2, starts[2])],
        [USERS - 1, starts[USERS - 1], starts[USERS]],
        [0, max(starts[0], starts[1] - 2), starts[1]],
    ]
    return np.array(windows)


def fast_loss(model: Model, batch: TrainBatch) -> Tensor:
    item_UD = model.items(batch.items)
    query_BQD = model.score.scale(model.users(batch.users, item_UD))
    return LogSigmoid()(pairs_of(batch, query_BQD, item_UD, model.score.bias))


def alone(maker: TrainBatches, user: int, times: Any, table_LD: Tensor) -> UserBatch:
    """One user with one history and no padding (a history of nothing is one absent position)."""
    width, length = max(1, len(times)), len(times)
    time = torch.zeros(1, width, dtype=torch.float64)
    time[0, :length] = torch.from_numpy(times)
    return UserBatch(
        torch.tensor([maker.users.row[user]]),
        torch.from_numpy(maker.users.categories[user : user + 1]),
        torch.from_numpy(maker.users.numbers[user : user + 1]),
        torch.arange(width)[None],
        (torch.arange(width) < length)[None],
        time,
    )


def naive_loss(model: Model, maker: TrainBatches, windows: Any) -> Tensor:
    """Loops over users, positions and items; each position and each negative is encoded by itself."""
    sequences = maker.sequences

    def encode(item: int) -> Tensor:
        return model.items(maker.items(np.array([item])))[0]

    drawn = [int(item) for _, first, stop in windows for item in sequences.item[first:stop]]
    negative = {item: encode(item) for item in set(drawn)}
    total, positives = torch.zeros((), dtype=torch.float64), 0
    for user, first, stop in windows:
        own = set(sequences.item[sequences.starts[user] : sequences.starts[user + 1]].tolist())
        position = [encode(int(item)) for item in sequences.item[first:stop]]
        for row in range(first, stop):
            was_a_target_before = row == first and first != sequences.starts[user]
            if was_a_target_before or sequences.weight[row] == 0:
                continue
            table = torch.stack(position[: row - first]) if row > first else torch.zeros(1, D, dtype=torch.float64)
            history = alone(maker, user, sequences.time[first:row], table)
            query = model.users(history, table)[0, row - first] / model.score.temperature
            likelihood = nn.functional.logsigmoid(query @ position[row - first] + model.score.bias)
            total = total - float(sequences.weight[row]) * likelihood
            for item, embedding in negative.items():
                if item not in own:
                    share = float((sequences.item == item).mean())
                    zero = nn.functional.logsigmoid(-(query @ embedding + model.score.bias))
                    total = total - zero / (1 - (1 - share) ** len(drawn))
            positives += 1
    return total / positives


def gradients(loss: Tensor, model: Model) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, values, strict=True))


@pytest.mark.parametrize(("seed", "training"), [(0, True), (1, True), (2, False)])
def test_same_loss_and_gradients_as_encoding_every_position(seed: int, training: bool) -> None:
    """Loss to 1e-5; each parameter's gradient to 1e-5 of the gradient's largest number."""
    model = Model().double().train(training)
    maker = make_batches(seed, model)
    windows = make_windows(maker)
    fast, slow = fast_loss(model, maker[windows]), naive_loss(model, maker, windows)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    one, other = gradients(fast, model), gradients(slow, model)
    largest = max(float(value.abs().max()) for value in other.values())
    for name, expected in other.items():
        torch.testing.assert_close(
            one[name], expected, rtol=1e-4, atol=1e-5 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )
    without = {name for name, value in other.items() if not value.abs().max() > 0}
    assert not without, "the comparison says something about every parameter"


def test_each_distinct_item_is_encoded_once_and_padding_never() -> None:
    model = Model().double()
    maker = make_batches(0, model)
    windows = make_windows(maker)
    rows: dict[str, int] = {}
    for name, encoder in model.items.encoders.items():
        encoder.register_forward_hook(
            lambda _, given, out, name=name: rows.update({name: len(out) + rows.get(name, 0)})
        )
    batch = maker[windows]
    fast_loss(model, batch)
    items = [maker.sequences.item[first:stop] for _, first, stop in windows]
    distinct = np.unique(np.concatenate(items))
    assert batch.items.index_U.tolist() == distinct.tolist()
    assert len(distinct) < sum(map(len, items)) < len(windows) * batch.target_BQ.shape[1], "shared, and padded"
    present_NM = maker.items.present_NM[distinct]
    assert rows == {name: int(present_NM[:, m].sum()) for m, name in enumerate(model.items.modalities)}
    assert rows["identity"] == len(distinct) > rows["text"]


def test_own_items_come_from_the_whole_history_and_not_only_the_window() -> None:
    maker = make_batches(0, Model())
    windows = make_windows(maker)
    batch, sequences = maker[windows], maker.sequences
    for row, (user, first, stop) in enumerate(windows):
        own = set(sequences.item[sequences.starts[user] : sequences.starts[user + 1]].tolist())
        assert batch.own_BU[row].tolist() == [int(item) in own for item in batch.items.index_U]
        assert own >= set(sequences.item[first:stop].tolist())
    in_window = np.isin(batch.items.index_U, sequences.item[windows[4, 1] : windows[4, 2]])
    assert batch.own_BU[4].sum() > in_window.sum()


def test_gradients_reach_the_first_layer_of_every_encoder() -> None:
    model = Model().double()
    maker = make_batches(1, model)
    fast_loss(model, maker[make_windows(maker)]).backward()
    encoders: Any = model.items.encoders
    first = {
        "text": encoders["text"].network.embeddings.word_embeddings.weight,
        "vision": encoders["vision"].network.stem[0].weight,
        "audio": encoders["audio"].convolutions[0].weight,
        "identity": encoders["identity"].table.weight,
    }
    for name, weight in first.items():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
