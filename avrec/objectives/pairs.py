"""What an objective sees: the batch's positives, its items and who may be a negative of whom."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from avrec.batch import TrainBatch


@dataclass
class Pairs:
    """P positives against U items.

    Attributes:
        query_PD: queries, divided by the temperature.
        item_UD: item embeddings.
        target_P: index into U of each positive.
        weight_P: R_ui of each positive, ≥ 0.
        negative_PU: True where the item may be a negative of the query: not one of the user's own.
        log_q_U: natural log of the probability that the item is in a batch at all.
        bias: added to every score.
    """

    query_PD: Float[Tensor, "P D"]
    item_UD: Float[Tensor, "U D"]
    target_P: Int[Tensor, " P"]
    weight_P: Float[Tensor, " P"]
    negative_PU: Bool[Tensor, "P U"]
    log_q_U: Float[Tensor, " U"]
    bias: Float[Tensor, ""]

    def scores(self) -> tuple[Float[Tensor, "P U"], Float[Tensor, " P"]]:
        """All scores, and among them the positives', in float32 whatever the precision of the towers."""
        with torch.autocast(self.query_PD.device.type, enabled=False):
            score_PU = self.query_PD.float() @ self.item_UD.float().T + self.bias.float()
        return score_PU, score_PU.gather(1, self.target_P[:, None]).squeeze(1)

    def negative_weight(self) -> Float[Tensor, "P U"]:
        """1 / q where the item may be a negative, else 0.

        The expectation over batches of a sum with these weights is the sum over the whole catalogue
        (Horvitz and Thompson 1952).
        """
        return (-self.log_q_U.float()).exp() * self.negative_PU


def pairs_of(batch: TrainBatch, query_BQD: Tensor, item_UD: Tensor, bias: Tensor) -> Pairs:
    """The valid pairs of a batch; padding is left behind here.

    Args:
        batch: the batch that the embeddings are of.
        query_BQD: queries, divided by the temperature.
        item_UD: item embeddings.
        bias: added to every score.
    """
    present_BQ = batch.target_present_BQ
    row_P = present_BQ.nonzero()[:, 0]
    return Pairs(
        query_PD=query_BQD[present_BQ],
        item_UD=item_UD,
        target_P=batch.target_BQ[present_BQ],
        weight_P=batch.weight_BQ[present_BQ],
        negative_PU=~batch.own_BU[row_P],
        log_q_U=batch.log_q_U,
        bias=bias,
    )
