"""Is a model well? Numbers that fall ill before the metrics do, and what they mean in words."""

import torch
from torch import Tensor

from avrec.batch import Array, UserError

SAMPLE = 4096
"""Rows that pairwise numbers are taken over, evenly spread: their cost grows with the square."""
COLLAPSED = 0.1
ALIKE = 0.9


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

    Args:
        query_ED: queries.
        item_ND: item embeddings.
        user_P: row of each pair's query.
        item_P: row of each pair's item.

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
    """The numbers of a trained model, by name.

    Args:
        query_ED: queries of a task.
        item_ND: the catalogue's embeddings.
        user_P: row of each pair's query.
        item_P: row of each pair's item.
    """
    query_ED, item_ND = query_ED.float().cpu(), item_ND.float().cpu()
    found = {"alignment": alignment(query_ED, item_ND, user_P, item_P)}
    for name, vectors in (("item", item_ND), ("user", query_ED)):
        found[f"{name}_effective_rank"] = effective_rank(vectors)
        found[f"{name}_uniformity"] = uniformity(vectors)
        found[f"{name}_mean_norm"] = float(vectors.norm(dim=1).mean())
        found[f"{name}_alikeness"] = float(torch.nn.functional.normalize(vectors, dim=1).mean(0).norm())
    return found


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
    return said


def _sample(vectors_ND: Tensor) -> Tensor:
    step = -(-len(vectors_ND) // SAMPLE)
    return vectors_ND[:: max(1, step)]
