"""Softmax cross-entropy over the batch's items, with logQ correction."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avrec.objectives.pairs import Pairs


class SampledSoftmax(nn.Module):
    """Sampled softmax with logQ correction (Yi et al. 2019; positives uncorrected: Khrylchenko et al. 2025).

    Per positive (u, i): ``−R_ui (s_ui − log(e^{s_ui} + Σ_j e^{s_uj − log q_j}))`` over the batch's items that are not
    the user's own. The positive is in the batch with probability 1 given that it is the positive, so it takes no
    correction. Averaged over positives. The reference, not the default: its scores are no probabilities.
    """

    def forward(self, pairs: Pairs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        score_PU, positive_P = pairs.scores()
        corrected_PU = (score_PU - pairs.log_q_U).masked_fill(~pairs.negative_PU, float("-inf"))
        normaliser_P = torch.cat([positive_P[:, None], corrected_PU], dim=1).logsumexp(1)
        return (pairs.weight_P * (normaliser_P - positive_P)).mean()
