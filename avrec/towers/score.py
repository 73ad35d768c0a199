"""The score: the product of the towers' outputs."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from avrec.errors import UserError


class Score(nn.Module):
    """Score = query · item / temperature + bias: the only thing that couples the towers.

    The bias shifts all scores alike, so it changes no ranking; it lets ``σ(score)`` be small for most pairs
    without the embeddings having to spend a direction on it (SigLIP, Zhai et al. 2023, section 3.2).

    Args:
        temperature: start value; logits are divided by it.
        bias: start value.
        learned: train both.
        lowest: the temperature is kept above it.
    """

    def __init__(self, temperature: float = 0.1, bias: float = 0.0, learned: bool = True, lowest: float = 0.01) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"score.temperature must be a number above 0, such as 0.1; got {temperature}.")
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log(), requires_grad=learned)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learned)
        self.lowest = lowest

    @property
    def temperature(self) -> Tensor:
        """The temperature in force."""
        return self.log_temperature.exp().clamp(min=self.lowest)

    def scale(self, query: Tensor) -> Tensor:
        """Queries divided by the temperature: their product with items, plus the bias, is the score."""
        return query / self.temperature

    def extra_repr(self) -> str:
        """Values in force."""
        values: dict[str, Any] = {"temperature": self.temperature.item(), "bias": self.bias.item()}
        return ", ".join(f"{name}={value:.4g}" for name, value in values.items())
