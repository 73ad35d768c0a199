"""avrec.training.optim: who decays, who learns slowly, and the schedule."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from avrec.content.items import RawItem
from avrec.towers.encoders.audio import AudioEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import AttentionFusion
from avrec.towers.history import HistoryAttention
from avrec.towers.item_tower import ItemTower
from avrec.towers.ncf import NCF
from avrec.towers.score import Score
from avrec.towers.user_tower import UserColumns, UserTower
from avrec.training.optim import adamw, constant, param_groups, warmup_cosine

RATES = {"tower": 1e-2, "encoder": 1e-3, "pretrained": 1e-4}


def groups_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {group["name"]: group for group in param_groups(model, RATES, weight_decay=0.1)}


def ids(group: dict[str, Any]) -> set[int]:
    return {id(parameter) for parameter in group["params"]}


@pytest.fixture(scope="module")
def towers() -> nn.ModuleDict:
    """Both towers: a pretrained picture network cut in the middle, a text network cut in the middle."""
    text = TextEncoder(width=8, depth=2, heads=2, vocab_size=258, trainable_layers=1)
    text.preprocess.fit([RawItem("a", "words")])
    vision = VisionEncoder("test_vit", weights="random", size=32, trainable_layers=1)
    vision.pretrained = True
    encoders = {
        "text": text,
        "vision": vision,
        "audio": AudioEncoder(seconds=0.5, width=8, depth=1, heads=2),
        "identity": IdentityEncoder(5, 4),
    }
    users = UserTower(
        lambda dim: HistoryAttention(dim, 1, 2, 4),
        lambda dim, columns: NCF(dim, columns, (6,)),
        UserColumns((3,), 1),
        5,
        8,
    )
    return nn.ModuleDict({"item_tower": ItemTower(encoders, AttentionFusion, 8), "user_tower": users, "score": Score()})


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one(towers: nn.ModuleDict) -> None:
    listed = [id(parameter) for group in groups_of(towers).values() for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in towers.parameters() if p.requires_grad}
    frozen = [p for p in towers.parameters() if not p.requires_grad]
    assert frozen
    assert not {id(p) for p in frozen} & set(listed)


def test_norms_biases_and_tables_do_not_decay(towers: nn.ModuleDict) -> None:
    groups = groups_of(towers)
    assert set(groups) == {f"{part}{decay}" for part in RATES for decay in ("", "_no_decay")}
    assert [groups[n]["weight_decay"] for n in sorted(groups)] == [0.1, 0.0] * 3
    still = set().union(*(ids(groups[f"{part}_no_decay"]) for part in RATES))
    for name, module in towers.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                matrix = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and own == "weight"
                matrix |= own == "in_proj_weight" or (name.endswith("fusion") and own == "kind_MD")
                assert (id(parameter) in still) != matrix, f"{name}.{own}"


def test_encoders_learn_at_rates_of_their_own_and_what_stands_on_them_does_not(towers: nn.ModuleDict) -> None:
    groups = groups_of(towers)
    assert {name: group["lr"] for name, group in groups.items()} == {
        f"{part}{decay}": rate for part, rate in RATES.items() for decay in ("", "_no_decay")
    }
    members = {part: ids(groups[part]) | ids(groups[f"{part}_no_decay"]) for part in RATES}
    encoders: Any = towers["item_tower"].encoders
    assert members["pretrained"] == {id(p) for p in encoders["vision"].network.parameters() if p.requires_grad}
    content = [p for name in ("text", "vision", "audio") for p in encoders[name].parameters() if p.requires_grad]
    assert members["encoder"] == {id(p) for p in content} - members["pretrained"]
    assert id(encoders["vision"].attend.weight) in members["encoder"], "a pretrained network's pooling is not"
    assert id(encoders["identity"].table.weight) in members["tower"]


def test_a_group_without_members_is_left_out() -> None:
    assert set(groups_of(nn.Linear(2, 2, bias=False))) == {"tower"}
    assert set(groups_of(nn.Embedding(2, 2))) == {"tower_no_decay"}


def test_a_row_that_was_not_looked_up_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1))
    before = model[0].weight.detach().clone()
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(model[0].weight[1], before[1])


def test_adamw_takes_the_groups_rates() -> None:
    optimizer = adamw(nn.Linear(2, 2), lr=0.5, weight_decay=0.3, betas=(0.8, 0.95))
    settings = {group["name"]: (group["lr"], group["weight_decay"], group["betas"]) for group in optimizer.param_groups}
    assert settings == {"tower": (0.5, 0.3, (0.8, 0.95)), "tower_no_decay": (0.5, 0.0, (0.8, 0.95))}


def rates(steps: int, total: int, **arguments: float) -> list[float]:
    optimizer = adamw(nn.Linear(1, 1), lr=2.0)
    schedule = warmup_cosine(optimizer, total, **arguments)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_warmup_then_cosine_to_the_floor() -> None:
    seen = rates(101, 100, warmup_share=0.1, floor=0.1)
    for step, rate in enumerate(seen):
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert rate == pytest.approx(2.0 * ((step + 1) / 10 if step < 10 else cosine))
    assert (seen[0], seen[9], seen[10], seen[100]) == pytest.approx((0.2, 2.0, 2.0, 0.2))
    assert seen[55] == pytest.approx(2.0 * 0.55), "half way down"


def test_the_schedule_s_ends() -> None:
    assert rates(5, 1) == pytest.approx([2.0, 2.0, 0.1, 0.1, 0.1]), "beyond the end it stays at the floor"
    assert all(rate > 0 for rate in rates(4, 2, floor=0.0)[:2]), "no step is wasted"
    optimizer = adamw(nn.Linear(1, 1), lr=2.0)
    schedule = constant(optimizer, 10)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [2.0, 2.0]
