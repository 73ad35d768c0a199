"""Bayesian personalised ranking over the batch's negatives."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from avrec.objectives.pairs import Pairs


class BPR(nn.Module):
    """Pairwise log-sigmoid (Rendle et al. 2009).

    Per positive (u, i): ``−R_ui Σ_j w̄_j log σ(s_ui − s_uj)`` over the batch's items that are not the user's own,
    with ``w̄_j`` proportional to ``1 / q_j`` and summing to 1: the mean over the catalogue, estimated from the
    batch. Averaged over positives. Scores promise an order only, not a probability.
    """

    def forward(self, pairs: Pairs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        score_PU, positive_P = pairs.scores()
        weight_PU = pairs.negative_weight()
        weight_PU = weight_PU / weight_PU.sum(1, keepdim=True).clamp(min=1e-12)
        return -(pairs.weight_P * (weight_PU * logsigmoid(positive_P[:, None] - score_PU)).sum(1)).mean()
