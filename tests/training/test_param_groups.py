"""avrec.training.param_groups: who decays, who learns slowly, and the schedule."""

import pytest
import torch
from torch import nn

from avrec.training.param_groups import adamw, param_groups, warmup_cosine


class Pretrained(nn.Module):
    pretrained = True

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(2, 2)


def test_groups() -> None:
    model = nn.ModuleDict(
        {"a": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "table": nn.Embedding(4, 3), "p": Pretrained()}
    )
    model["a"].weight.requires_grad_(False)
    groups = {group["name"]: group for group in param_groups(model, 1e-2, 1e-4, 0.1)}
    assert set(groups) == {"fresh_no_decay", "pretrained", "pretrained_no_decay"}
    assert len(groups["fresh_no_decay"]["params"]) == 4
    assert groups["pretrained"]["lr"] == 1e-4
    assert groups["pretrained"]["weight_decay"] == 0.1
    assert groups["fresh_no_decay"]["weight_decay"] == 0
    assert sum(len(group["params"]) for group in groups.values()) == 6


def test_warmup_then_cosine() -> None:
    optimizer = adamw(nn.Linear(1, 1), lr=1.0)
    schedule = warmup_cosine(optimizer, 100, warmup_share=0.1, floor=0.1)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert torch.tensor(rates[10:]).diff().max() <= 0
