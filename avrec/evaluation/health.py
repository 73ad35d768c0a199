"""Early-warning diagnostics of a model: collapse, drift, popularity bias, calibration."""

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.errors import UserError
from avrec.evaluation.list_metrics import popularity_at_k
from avrec.evaluation.ranking import EmbeddingScorer, top_k
from avrec.ranking_task import RankingTask

SAMPLE = 4096
"""Rows, evenly spread, for pairwise numbers, whose cost is quadratic."""
COLLAPSED = 0.1
ALIKE = 0.9
OFF = 2.0
"""Factor between predicted and observed choices that warrants a warning."""
FASHION = 0.25
"""Excess popularity of recommendations over held-out items, in percentiles, that warrants a warning."""
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
        raise UserError("alignment needs at least one pair of a query and its item; got none.")
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
    mean norm, relative. Large values late in training: stored item embeddings age fast.

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
    """How well σ(score) predicts the probability that an item is the user's next choice.

    Each user makes one choice, shared equally by the relevant items. Over the candidates, without seen items under the
    seen filter:

    - ``calibration_ratio``: predicted choices, the sum of σ(score), over observed ones. Ideal: 1.
    - ``calibration_error``: the share of predicted and observed mass that must move between scores for both to agree,
      in bins one unit of score wide: 0 (ideal) to 1. The expected calibration error of Naeini et al. (2015), with bins
      in log-odds since nearly all probabilities are near 0, divided by the total mass.

    ``query_ED`` are divided by the temperature; ``bias`` is the score's.
    """
    share_J = np.repeat(1 / np.diff(task.relevant.starts), np.diff(task.relevant.starts))
    predicted, observed = torch.zeros(_BINS, dtype=torch.float64), torch.zeros(_BINS, dtype=torch.float64)
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
        predicted += torch.bincount(bin_BN.flatten(), mass_BN.flatten(), minlength=_BINS)
        found_J = bin_BN[relevant.rows(), relevant.values]
        shares_J = torch.from_numpy(share_J[task.relevant.starts[start] : task.relevant.starts[rows[-1] + 1]])
        observed += torch.bincount(found_J, shares_J, minlength=_BINS)
    total = predicted.sum() + observed.sum()
    return {
        "calibration_ratio": float(predicted.sum() / observed.sum()),
        "calibration_error": float((predicted - observed).abs().sum() / total),
    }


def warnings_of(health: dict[str, float], dim: int) -> list[str]:
    """Warnings, as sentences.

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
                f"{plural} point nearly the same way (mean cosine similarity {alike:.2f}). Train longer, or look for "
                "content that all items share."
            )
    ratio = health.get("calibration_ratio", 1.0)
    if not 1 / OFF <= ratio <= OFF:
        said.append(f"σ(score) predicts {ratio:.2g} times the observed choices: it ranks, but is no probability.")
    recommended, chosen = (health.get(f"{name}_popularity", 0.0) for name in ("recommended", "chosen"))
    if recommended - chosen > FASHION:
        said.append(
            f"recommended items are more popular (percentile {recommended:.0%}) than held-out ones ({chosen:.0%}). "
            "Weight the positives by popularity, and check the metrics of cold items."
        )
    return said


def _sample(vectors_ND: Tensor) -> Tensor:
    step = -(-len(vectors_ND) // SAMPLE)
    return vectors_ND[:: max(1, step)]
