"""Optimizer and schedule: which parameters decay, which learn slowly, and how the rate moves."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def param_groups(model: nn.Module, lr: float, pretrained_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in up to four groups: fresh or pretrained, with or without weight decay.

    Norms, biases and other vectors and scalars do not decay, nor do tables: a row that was not looked up must not
    shrink. Frozen parameters are left out.

    Args:
        model: its submodules with ``pretrained = True`` get ``pretrained_lr`` for their ``network``.
        lr: learning rate of fresh parameters.
        pretrained_lr: learning rate of pretrained encoders.
        weight_decay: of the groups that decay.
    """
    pretrained = {
        id(parameter)
        for module in model.modules()
        if getattr(module, "pretrained", False)
        for parameter in module.network.parameters()
    }
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in tables
            groups.setdefault((id(parameter) in pretrained, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": pretrained_lr if is_pretrained else lr,
            "weight_decay": weight_decay if decays else 0.0,
            "name": f"{'pretrained' if is_pretrained else 'fresh'}{'' if decays else '_no_decay'}",
        }
        for (is_pretrained, decays), parameters in sorted(groups.items())
    ]


def adamw(
    model: nn.Module,
    lr: float = 1e-3,
    pretrained_lr: float = 2e-5,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    """AdamW over ``param_groups``."""
    groups = param_groups(model, lr, pretrained_lr, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(float(betas[0]), float(betas[1])))


def warmup_cosine(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_share: float = 0.05, floor: float = 0.05
) -> LambdaLR:
    """Linear warm-up over a share of the steps, then a cosine down to ``floor`` × the learning rate.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimizer steps of the whole training.
        warmup_share: share of the steps.
        floor: share of the learning rate that is left at the end.
    """
    warmup = max(1, round(total_steps * warmup_share))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, scale)


def constant(optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """No schedule."""
    return LambdaLR(optimizer, lambda step: 1.0)
