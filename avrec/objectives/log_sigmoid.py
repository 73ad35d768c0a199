"""The default objective: log-sigmoid with its zero terms."""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from avrec.errors import UserError
from avrec.objectives.pairs import Pairs


class LogSigmoid(nn.Module):
    """Weighted log-sigmoid over positives and the whole catalogue's zero terms, estimated from the batch.

    Per positive (u, i): ``−R_ui β log σ(s_ui) − λ Σ_j w_j log σ(−s_uj)``, averaged over positives. j runs over the
    batch's items that are not the user's own, and ``w_j = 1 / q_j`` makes the sum an unbiased estimate of the sum
    over the whole catalogue.

    Requirements: ``log_q_U`` is the inclusion probability of distinct items, ``1 − (1 − p)^n``.

    Relations: with ``beta`` < 1 it is generalised BCE (gBCE, Petrov and Macdonald 2023, section 4), which counters
    the over-confidence of negative sampling; ``bpr`` compares pairs instead of judging each on its own.

    Args:
        beta: exponent of the positive's probability, in (0, 1].
        zero_weight: λ, the weight of the zero terms. 1: every catalogue item that is not the user's own counts
            as one observed zero at each position. It must be above 0: the positive term alone is maximal where
            all scores are infinite.

    Raises:
        UserError: beta or zero_weight is out of range.
    """

    def __init__(self, beta: float = 1.0, zero_weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise UserError(f"objective.beta must be above 0 and at most 1, plain log-sigmoid; got {beta}.")
        if not 0 < zero_weight < math.inf:
            raise UserError(
                f"objective.zero_weight must be a finite number above 0; got {zero_weight}. Without negatives the best "
                "model is one whose scores are all infinite."
            )
        self.beta = beta
        self.zero_weight = zero_weight
        # Else σ(score) is another number, which only ranks.
        self.promises_probabilities = beta == 1 and zero_weight == 1

    def forward(self, pairs: Pairs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        score_PU, positive_P = pairs.scores()
        positive = self.beta * pairs.weight_P * logsigmoid(positive_P)
        zeros = (pairs.negative_weight() * logsigmoid(-score_PU)).sum(1)
        return -(positive + self.zero_weight * zeros).mean()
