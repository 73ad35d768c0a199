"""Is a model well? Numbers that fall ill before the metrics do, and what they mean in words."""

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.errors import UserError
from avrec.evaluation.list_metrics import popularity_at_k
from avrec.evaluation.ranking import EmbeddingScorer, top_k
from avrec.ranking_task import RankingTask

SAMPLE = 4096
"""Rows that pairwise numbers are taken over, evenly spread: their cost grows with the square."""
COLLAPSED = 0.1
ALIKE = 0.9
OFF = 2.0
"""A factor between promised and observed choices that is too large."""
FASHION = 0.25
"""How much more popular than what people choose, as a percentile, recommendations may be."""
BIASED_K = 10
_BINS = 121
_CHUNK = 512


def effective_rank(vectors_ND: Tensor) -> float:
    """How many dimensions the vectors really use: exp of the entropy of the normalised singular values.

    From 1 (all on one line: collapse) to D (the same spread in every direction).

    >>> round(effective_rank(torch.eye(4)), 4), round(effective_rank(torch.ones(5, 4)), 4)
    (4.0, 1.0)

    Reference:
        Roy & Vetterli, The Effective Rank (2007).
    """
    values = torch.linalg.svdvals(_sample(vectors_ND).double())
    share = values / values.sum().clamp(min=1e-300)
    return float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))


def uniformity(vectors_ND: Tensor) -> float:
    """Log of the mean Gaussian potential between unit vectors: 0 where all are one, towards -4 where spread evenly.

    >>> uniformity(torch.ones(3, 2)) == 0
    True

    Reference:
        Wang & Isola, Understanding Contrastive Representation Learning (2020), section 4.1.2.
    """
    unit = torch.nn.functional.normalize(_sample(vectors_ND).double(), dim=1)
    if len(unit) < 2:
        return 0.0
    return float(torch.exp(-2 * torch.pdist(unit).square()).mean().log()) + 0.0


def alignment(query_ED: Tensor, item_ND: Tensor, user_P: Array, item_P: Array) -> float:
    """Mean squared distance between unit query and unit item of the pairs that belong together: 0 to 4.

    ``user_P`` has the row of each pair's query, ``item_P`` that of its item.

    Reference:
        Wang & Isola (2020), section 4.1.1.

    Raises:
        UserError: no pair.
    """
    if not len(user_P):
        raise UserError("alignment needs at least one pair of a query and its item.")
    query, item = query_ED[torch.as_tensor(user_P)], item_ND[torch.as_tensor(item_P)]
    cosine = torch.nn.functional.cosine_similarity(query.double(), item.double(), dim=1)
    return float((2 - 2 * cosine).mean())


def health_of(query_ED: Tensor, item_ND: Tensor, user_P: Array, item_P: Array) -> dict[str, float]:
    """The numbers of a trained model, by name; the pairs are as in ``alignment``."""
    query_ED, item_ND = query_ED.float().cpu(), item_ND.float().cpu()
    found = {"alignment": alignment(query_ED, item_ND, user_P, item_P)}
    for name, vectors in (("item", item_ND), ("user", query_ED)):
        found[f"{name}_effective_rank"] = effective_rank(vectors)
        found[f"{name}_uniformity"] = uniformity(vectors)
        found[f"{name}_mean_norm"] = float(vectors.norm(dim=1).mean())
        found[f"{name}_alikeness"] = float(torch.nn.functional.normalize(vectors, dim=1).mean(0).norm())
    return found


def drift(before_ND: Tensor, item_ND: Tensor) -> dict[str, float]:
    """How far the catalogue's embeddings have moved from one validation to the next.

    ``item_drift`` is 1 minus the mean cosine of each item with itself before; ``item_norm_drift`` the change of the
    mean norm, as a share of what it was. Large numbers late in training: what is stored of the items is soon old.

    >>> drift(torch.eye(2), 3 * torch.eye(2))
    {'item_drift': 0.0, 'item_norm_drift': 2.0}
    """
    cosine = torch.nn.functional.cosine_similarity(before_ND.double(), item_ND.double(), dim=1)
    norms = [float(vectors.double().norm(dim=1).mean()) for vectors in (before_ND, item_ND)]
    return {"item_drift": 1 - float(cosine.mean()), "item_norm_drift": norms[1] / max(norms[0], 1e-12) - 1}


def popularity_bias(query_ED: Tensor, item_ND: Tensor, task: RankingTask) -> dict[str, float]:
    """How popular the first ten recommended items are, and the items that the users chose: mean percentiles."""
    top_EK = top_k(EmbeddingScorer(query_ED, item_ND), task, BIASED_K)
    chosen_J1 = task.relevant.values[:, None]
    return {
        name: float(popularity_at_k(items, task.popularity_N, task.candidates_N).mean())
        for name, items in (("recommended_popularity", top_EK), ("chosen_popularity", chosen_J1))
    }


def calibration(query_ED: Tensor, item_ND: Tensor, bias: float, task: RankingTask) -> dict[str, float]:
    """Whether σ(score) is the probability that it promises: that an item is what the user chooses next.

    Each user chooses once; who chose several relevant items, each of them in part. Over the candidates, less
    those that a user has seen where these are filtered:

    - ``calibration_ratio``: what is promised, the sum of σ(score), by what is observed. 1 is right, 2 promises twice
      as many choices as there are.
    - ``calibration_error``: the share of the promised and the observed mass that would have to move between scores
      for both to agree, in bins one unit of score wide: 0 (right) to 1. The expected calibration error of Naeini et
      al. (2015), with bins in log-odds since nearly all probabilities are near 0, by the total mass.

    ``query_ED`` are divided by the temperature; ``bias`` is the score's.
    """
    share_J = np.repeat(1 / np.diff(task.relevant.starts), np.diff(task.relevant.starts))
    promised, observed = torch.zeros(_BINS, dtype=torch.float64), torch.zeros(_BINS, dtype=torch.float64)
    candidates_N = torch.from_numpy(np.asarray(task.candidates_N, dtype=bool))
    scorer = EmbeddingScorer(query_ED, item_ND)
    for start in range(0, len(task), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(task)))
        score_BN = scorer(rows) + bias
        bin_BN = (score_BN.round().long() + _BINS // 2).clamp(0, _BINS - 1)
        mass_BN = score_BN.double().sigmoid() * candidates_N
        seen, relevant = task.seen.take(rows), task.relevant.take(rows)
        if task.seen_filter:
            mass_BN[seen.rows(), seen.values] = 0
        promised += torch.bincount(bin_BN.flatten(), mass_BN.flatten(), minlength=_BINS)
        found_J = bin_BN[relevant.rows(), relevant.values]
        shares_J = torch.from_numpy(share_J[task.relevant.starts[start] : task.relevant.starts[rows[-1] + 1]])
        observed += torch.bincount(found_J, shares_J, minlength=_BINS)
    total = promised.sum() + observed.sum()
    return {
        "calibration_ratio": float(promised.sum() / observed.sum()),
        "calibration_error": float((promised - observed).abs().sum() / total),
    }


def warnings_of(health: dict[str, float], dim: int) -> list[str]:
    """What is off, in words.

    >>> warnings_of({"item_effective_rank": 2.0, "item_alikeness": 0.2}, 64)
    ['items use 2.0 of 64 dimensions: collapse. Lower the learning rates, or raise the temperature.']
    """
    said = []
    for name, plural in (("item", "items"), ("user", "queries")):
        rank = health.get(f"{name}_effective_rank", dim)
        if rank < COLLAPSED * dim:
            said.append(
                f"{plural} use {rank:.1f} of {dim} dimensions: collapse. Lower the learning rates, or raise the "
                "temperature."
            )
        alike = health.get(f"{name}_alikeness", 0.0)
        if alike > ALIKE:
            said.append(
                f"{plural} point nearly the same way ({alike:.2f} of 1): they are hardly told apart. Train longer, or "
                "look for content that is the same for all."
            )
    ratio = health.get("calibration_ratio", 1.0)
    if not 1 / OFF <= ratio <= OFF:
        said.append(
            f"σ(score) promises {ratio:.2g} times the choices that are observed: rank by it, but do not read it as a "
            "probability."
        )
    recommended, chosen = (health.get(f"{name}_popularity", 0.0) for name in ("recommended", "chosen"))
    if recommended - chosen > FASHION:
        said.append(
            f"recommended items are more popular (percentile {recommended:.0%}) than those that people choose "
            f"({chosen:.0%}). Weigh the positives by popularity, or look at the cold items' metrics."
        )
    return said


def _sample(vectors_ND: Tensor) -> Tensor:
    step = -(-len(vectors_ND) // SAMPLE)
    return vectors_ND[:: max(1, step)]
