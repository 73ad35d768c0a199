"""The batch contract against a double loop that encodes every position: same loss, same gradients.

Covers avrec.data.batches, avrec.data.sequences, avrec.towers.user_tower, avrec.objective.pairs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from avrec.batch import ItemBatch, RawItem, UserBatch
from avrec.data.batches import Identity, ItemBatches, TrainBatches, UserBatches
from avrec.data.sequences import Sequences
from avrec.data.tables import Catalogue, Interactions
from avrec.objective.log_sigmoid import LogSigmoid
from avrec.objective.pairs import pairs_of
from avrec.towers.encoders.audio import AudioEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import ConcatFusion
from avrec.towers.history_attention import HistoryAttention
from avrec.towers.item_tower import ItemTower
from avrec.towers.ncf import NCF
from avrec.towers.score import Score
from avrec.towers.user_tower import UserColumns, UserTower

N, USERS, D, L = 14, 6, 16, 5


class Fake:
    """Prepared content in memory."""

    def __init__(self, present_N: Any, arrays: dict[str, Any]) -> None:
        self.present_N = present_N
        self.arrays = arrays

    def read(self, indices: Any) -> dict[str, Any]:
        assert self.present_N[indices].all(), "a missing modality's content must not be read"
        return {name: array[indices] for name, array in self.arrays.items()}


def make_log(rng: np.random.Generator) -> Interactions:
    user = np.sort(np.concatenate([np.arange(USERS), rng.integers(USERS, size=40)]))
    item = rng.integers(N - 2, size=len(user))
    weight = rng.random(len(user)).astype(np.float32)
    weight[3] = 0
    return Interactions(user, item, np.cumsum(rng.random(len(user)) * 1000), weight)


def make_content(rng: np.random.Generator, vision: VisionEncoder, audio: AudioEncoder, trained: Any) -> dict[str, Any]:
    frames, mel = vision.preprocess.arrays()["frames"].shape, audio.preprocess.arrays()["log_mel"].shape
    tokens = rng.integers(2, 200, size=(N, 12)).astype(np.int32)
    for row, length in enumerate(rng.integers(1, 12, size=N)):
        tokens[row, length:] = 0
    slots = rng.random((N, frames[0])) < 0.6
    slots[:, 0] = True
    has = [rng.random(N) < 0.7 for _ in range(3)]
    return {
        "text": Fake(has[0], {"tokens": tokens}),
        "vision": Fake(
            has[1],
            {"frames": rng.integers(0, 255, size=(N, *frames)).astype(np.uint8), "frame_present": slots},
        ),
        "audio": Fake(
            has[2],
            {
                "log_mel": rng.normal(size=(N, *mel)).astype(np.float16),
                "length": rng.integers(4, mel[0], size=N).astype(np.int32),
            },
        ),
        "identity": Identity(trained),
    }


def make_model() -> tuple[ItemTower, UserTower, Score]:
    torch.manual_seed(0)
    text = TextEncoder(width=16, depth=1, heads=2, vocab_size=256, max_tokens=12)
    text.preprocess.fit([RawItem("a", "some words to learn from")])
    encoders = {
        "text": text,
        "vision": VisionEncoder(size=32, video_frames=2),
        "audio": AudioEncoder(seconds=0.6, width=16, depth=1, heads=2),
        "identity": IdentityEncoder(N, 8),
    }
    items = ItemTower(encoders, lambda m, d: ConcatFusion(m, d, hidden=24), D)
    users = UserTower(
        lambda dim: HistoryAttention(dim, 2, 2, L),
        lambda dim, columns: NCF(dim, columns, (16,)),
        UserColumns((4,), 1),
        USERS,
        D,
    )
    torch.nn.init.normal_(users.ncf.join.weight, std=0.1)
    # Evaluation mode: no dropout; gradients flow all the same.
    return items.eval(), users.eval(), Score(0.2, -1.0)


def naive_loss(batch_maker: TrainBatches, windows: Any, model: Any, objective_scale: Any) -> torch.Tensor:
    items, users, score = model
    sequences = batch_maker.sequences

    def encode(index: int) -> torch.Tensor:
        return items(batch_maker.items(np.array([index])))[0]

    distinct = sorted({int(i) for _, first, stop in windows for i in sequences.item[first:stop]})
    drawn = sum(int(stop - first) for _, first, stop in windows)
    total, positives = torch.zeros(()), 0
    for user, first, stop in windows:
        own = set(sequences.item[sequences.starts[user] : sequences.starts[user + 1]].tolist())
        for row in range(first, stop):
            starts_midway = row == first and first != sequences.starts[user]
            if starts_midway or sequences.weight[row] == 0:
                continue
            history = sequences.item[first:row]
            table = torch.stack([encode(int(i)) for i in history]) if len(history) else torch.zeros(1, D)
            width = max(1, len(history))
            present = torch.zeros(1, width, dtype=torch.bool)
            present[0, : len(history)] = True
            time = torch.zeros(1, width, dtype=torch.float64)
            time[0, : len(history)] = torch.from_numpy(sequences.time[first:row])
            one = UserBatch(
                torch.tensor([batch_maker.users.row[user]]),
                torch.from_numpy(batch_maker.users.categories[user : user + 1]),
                torch.from_numpy(batch_maker.users.numbers[user : user + 1]),
                torch.arange(width)[None],
                present,
                time,
            )
            query = score.scale(users.last(one, table))[0]
            total = total - float(sequences.weight[row]) * torch.nn.functional.logsigmoid(
                query @ encode(int(sequences.item[row])) + score.bias
            )
            for item in distinct:
                if item not in own:
                    inclusion = 1 - (1 - batch_maker.share_N[item]) ** drawn
                    total = total - torch.nn.functional.logsigmoid(-(query @ encode(item) + score.bias)) / inclusion
            positives += 1
    return total / positives


def gradients(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    named = {f"{part}.{n}": p for part, module in enumerate(model) for n, p in module.named_parameters()}
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: value for name, value in zip(named, values, strict=True) if value is not None}


def test_same_loss_and_gradients_as_encoding_every_position() -> None:
    rng = np.random.default_rng(3)
    log = make_log(rng)
    sequences = Sequences.of(log, np.ones(len(log), bool), USERS)
    trained = np.bincount(log.item, minlength=N) > 0
    model = make_model()
    items, users, score = model
    content = make_content(rng, items.encoders["vision"], items.encoders["audio"], trained)
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
    maker = TrainBatches(
        sequences, ItemBatches(content), UserBatches(catalogue, np.arange(USERS) != 1, L), catalogue.user_ids
    )
    starts = sequences.starts
    windows = np.array(
        [
            [0, starts[0], min(starts[0] + L + 1, starts[1])],
            [2, starts[3] - 3, starts[3]],
            [1, starts[1], starts[1] + 2],
        ]
    )
    batch = maker[windows]
    rows: list[int] = []
    hook = items.encoders["identity"].register_forward_hook(lambda module, given, out: rows.append(len(out)))
    item_UD = items(batch.items)
    hook.remove()
    assert rows == [len(np.unique(np.concatenate([log.item[a:b] for _, a, b in windows])))]
    query_BQD = score.scale(users(batch.users, item_UD))
    fast = LogSigmoid()(pairs_of(batch, query_BQD, item_UD, score.bias))
    slow = naive_loss(maker, windows, model, None)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    one, other = gradients(fast, model), gradients(slow, model)
    assert set(one) >= set(other)
    for name, value in one.items():
        expected = other.get(name, torch.zeros_like(value))
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_reach_the_first_layer_of_every_encoder() -> None:
    rng = np.random.default_rng(5)
    model = make_model()
    items, _, score = model
    content = make_content(rng, items.encoders["vision"], items.encoders["audio"], np.ones(N, bool))
    batch: ItemBatch = ItemBatches(content)(np.arange(N))
    items.train()
    (items(batch) * torch.randn(N, D)).sum().backward()
    first = {
        "text": items.encoders["text"].network.embeddings.word_embeddings.weight,
        "vision": next(items.encoders["vision"].network.stem.parameters()),
        "audio": items.encoders["audio"].convolutions[0].weight,
        "identity": items.encoders["identity"].table.weight,
    }
    for name, weight in first.items():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
