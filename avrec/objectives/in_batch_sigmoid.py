"""SigLIP's pairwise sigmoid over the batch's score matrix."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from avrec.objectives.pairs import Pairs


class InBatchSigmoid(nn.Module):
    """Pairwise sigmoid over the whole score matrix (SigLIP, Zhai et al. 2023), with learned temperature and bias.

    Per positive (u, i): ``−R_ui log σ(s_ui) − Σ_j log σ(−s_uj)`` over the batch's items that are not the user's
    own, averaged over positives. No correction for how often an item is in a batch: popular items are negatives
    more often, which counts against them.

    Relations: ``log_sigmoid`` is the same with the correction.
    """

    def forward(self, pairs: Pairs) -> Float[Tensor, ""]:
        """The loss of a batch."""
        score_PU, positive_P = pairs.scores()
        zeros = (logsigmoid(-score_PU) * pairs.negative_PU).sum(1)
        return -(pairs.weight_P * logsigmoid(positive_P) + zeros).mean()
