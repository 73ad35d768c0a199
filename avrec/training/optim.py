"""Optimizer and schedule: which parameters decay, which learn slowly, and how the rate moves."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from avrec.errors import UserError
from avrec.towers.encoders.base import Encoder


def param_groups(model: nn.Module, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in groups: by learning rate, with or without weight decay.

    Norms, biases and other vectors and scalars do not decay, nor do tables: a row that was not looked up must not
    shrink. Frozen parameters are left out.

    ``rates`` are learning rates, by what they are for: ``pretrained`` (the networks of encoders whose weights come from
    elsewhere), ``encoder`` (what else reads content), ``tower`` (everything above, and the tables).
    """
    part_of = _parts(model)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in tables
            groups.setdefault((part_of.get(id(parameter), "tower"), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decays else 0.0,
            "name": f"{part}{'' if decays else '_no_decay'}",
        }
        for (part, decays), parameters in sorted(groups.items())
    ]


def _parts(model: nn.Module) -> dict[int, str]:
    """``encoder`` or ``pretrained`` for the parameters of encoders that read content."""
    part_of: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, Encoder) and module.preprocess is not None:
            part_of |= {id(parameter): "encoder" for parameter in module.parameters()}
            if module.pretrained:
                network = module.get_submodule("network")
                part_of |= {id(parameter): "pretrained" for parameter in network.parameters()}
    return part_of


def adamw(
    model: nn.Module,
    lr: float = 5e-3,
    encoder_lr: float = 5e-4,
    pretrained_lr: float = 5e-5,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    """AdamW over ``param_groups``.

    A tower's top must follow what its encoders give; where those move as fast as it does, it never catches up.

    Args:
        model: what is trained.
        lr: of everything above the encoders, and of the tables.
        encoder_lr: of encoders with random weights.
        pretrained_lr: of pretrained encoders.
        weight_decay: of matrices.
        betas: of AdamW.
    """
    for name, rate in (("lr", lr), ("encoder_lr", encoder_lr), ("pretrained_lr", pretrained_lr)):
        if not (isinstance(rate, int | float) and 0 < rate < math.inf):
            raise UserError(f"optimizer.{name} must be a number above 0, such as 1e-3; got {rate}.")
    groups = param_groups(model, {"tower": lr, "encoder": encoder_lr, "pretrained": pretrained_lr}, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(float(betas[0]), float(betas[1])))


def warmup_cosine(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_share: float = 0.05, floor: float = 0.05
) -> LambdaLR:
    """Linear warm-up over a share of the optimizer's steps, then a cosine down to ``floor`` × the learning rate."""
    if not 0 <= warmup_share <= 1 or not 0 <= floor <= 1:
        raise UserError(
            f"scheduler.warmup_share and scheduler.floor must be from 0 to 1; got {warmup_share} and {floor}."
        )
    # A share of few steps is next to nothing, and a first step at the full rate throws a small catalogue back.
    warmup = max(1, round(total_steps * warmup_share), min(10, total_steps // 4))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, scale)


def constant(optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """No schedule."""
    return LambdaLR(optimizer, lambda step: 1.0)
