"""Means over users, accumulated batch by batch in one or more processes."""

from typing import Any

import torch
from torchmetrics import Metric

from avrec.errors import UserError
from avrec.evaluation.metrics import METRICS


class RankingMetric(Metric):
    """A metric of ``avrec.evaluation.metrics`` over all users that any process has seen.

    Each user must be given once, to one process: a sampler that repeats users to make shares equal changes the mean.
    Sums are kept in float64, so that shares of any size give the same mean up to its rounding (1e-12).

    Four users in two batches, k = 3.

    >>> metric = RankingMetric("recall", 3)
    >>> metric.update(torch.tensor([[1, 0, 0], [0, 0, 1]]), torch.tensor([1, 1]))
    >>> metric.update(torch.tensor([[1, 1, 0], [0, 1, 0]]), torch.tensor([2, 4]))
    >>> float(metric.compute())
    0.8125

    Raises:
        UserError: a ``name`` that is no key of ``METRICS``, or k below 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: torch.Tensor
    users: torch.Tensor

    def __init__(self, name: str, k: int) -> None:
        super().__init__()
        if name not in METRICS or k < 1:
            raise UserError(f"The metric must be one of {', '.join(METRICS)}, and k at least 1; got {name}@{k}.")
        self.name, self.k = name, k
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("users", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, hits_BK: Any, relevant_B: Any) -> None:
        """Take in some users.

        Args:
            hits_BK: True where the item at that rank is relevant; at least k columns, unless the catalogue is smaller.
            relevant_B: number of relevant items, at least 1.
        """
        hits_BK, relevant_B = (torch.as_tensor(given).cpu().numpy() for given in (hits_BK, relevant_B))
        values_B = METRICS[self.name](hits_BK[:, : self.k], relevant_B)
        self.total += float(values_B.sum())
        self.users += len(values_B)

    def compute(self) -> torch.Tensor:
        """The mean over users; NaN before the first."""
        return self.total / self.users
