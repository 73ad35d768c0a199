"""Metrics of a ranked list, one number per user.

Every function takes ``hits_BK`` (True where the item at that rank is relevant; the best rank first, so ``K`` is
the k of the metric's name) and ``relevant_B`` (how many relevant items the user has, found or not) and returns
one float64 per user. To have a smaller k, give fewer columns: ``ndcg_at_k(hits_BK[:, :10], relevant_B)``.

Each raises a ``UserError`` where shapes do not fit, or a user has no relevant item or fewer than hits. A user without
relevant items has no defined recall or NDCG: scoring such users 0 or 1 would move the mean by how many of them there
happen to be.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError

Metric = Callable[[Any, Any], Array]
"""``(hits_BK, relevant_B) -> values_B``."""


def recall_at_k(hits_BK: Any, relevant_B: Any) -> Array:
    """The share of the user's relevant items that are among the first k.

    ``recall@k = hits in the first k / relevant``

    With more relevant items than k it cannot reach 1, and it is blind to the order within the first k.

    Four users, k = 3: the one relevant item at rank 1; at rank 3; both of two found; one of four found.

    >>> hits = [[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]
    >>> recall_at_k(hits, [1, 1, 2, 4]).tolist()
    [1.0, 1.0, 1.0, 0.25]
    """
    hits_BK, relevant_B = _checked(hits_BK, relevant_B)
    return hits_BK.sum(axis=1) / relevant_B


def ndcg_at_k(hits_BK: Any, relevant_B: Any) -> Array:
    """Normalised discounted cumulative gain with binary gains: a hit counts less the lower it stands.

    ``NDCG@k = sum over hits of 1 / log2(rank + 1)  /  sum over ranks 1 .. min(k, relevant) of 1 / log2(rank + 1)``

    The denominator is the best that k places allow, so a perfect list scores 1 for any number of relevant items;
    libraries that divide by the ideal of all relevant items give less for users with more than k of them.

    Four users, k = 3: the one relevant item at rank 1; at rank 3; both of two found; one of four found, at rank 2.

    >>> hits = [[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]
    >>> ndcg_at_k(hits, [1, 1, 2, 4]).round(4).tolist()
    [1.0, 0.5, 1.0, 0.2961]
    """
    hits_BK, relevant_B = _checked(hits_BK, relevant_B)
    places = hits_BK.shape[1]
    discount_K = 1.0 / np.log2(np.arange(2, places + 2))
    # cumsum on both sides: a perfect list adds the same numbers in the same order and so is exactly 1.
    gain_B = np.cumsum(hits_BK * discount_K, axis=1)[:, -1]
    ideal_K = np.cumsum(discount_K)
    return gain_B / ideal_K[np.minimum(relevant_B, places) - 1]


def mrr_at_k(hits_BK: Any, relevant_B: Any) -> Array:
    """The reciprocal rank of the first hit, 0 where none is among the first k (its mean over users is the MRR).

    ``RR@k = 1 / rank of the first hit``

    Only the first hit counts: what stands below it changes nothing.

    Four users, k = 3: first hit at rank 1; at rank 3; at rank 1 with another below; at rank 2.

    >>> hits = [[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]
    >>> mrr_at_k(hits, [1, 1, 2, 4]).round(4).tolist()
    [1.0, 0.3333, 1.0, 0.5]
    """
    hits_BK, _ = _checked(hits_BK, relevant_B)
    return hits_BK.any(axis=1) / (hits_BK.argmax(axis=1) + 1.0)


def hit_rate_at_k(hits_BK: Any, relevant_B: Any) -> Array:
    """1 where any relevant item is among the first k, else 0.

    ``HR@k = [hits in the first k > 0]``

    Equal to recall for users with one relevant item; with many it is soon 1 for everyone and tells models apart
    no longer.

    Four users, k = 3: the last one's only relevant item is not found.

    >>> hits = [[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    >>> hit_rate_at_k(hits, [1, 1, 2, 1]).tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    hits_BK, _ = _checked(hits_BK, relevant_B)
    return hits_BK.any(axis=1).astype(np.float64)


def map_at_k(hits_BK: Any, relevant_B: Any) -> Array:
    """Average precision: the precision at each hit, averaged over the hits there could be (over users, the MAP).

    ``AP@k = sum over hits of (hits down to this rank) / rank  /  min(k, relevant)``

    The denominator counts the hits that k places allow, so a perfect list scores 1 and a relevant item that is not
    found costs its full share. Libraries that divide by the hits found (torchmetrics) give a list with one hit at
    rank 1 a 1 whatever it misses. A swap of the first two ranks moves it far more than NDCG.

    Four users, k = 3: the one relevant item at rank 1; at rank 3; both of two found; one of four found, at rank 2.

    >>> hits = [[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]]
    >>> map_at_k(hits, [1, 1, 2, 4]).round(4).tolist()
    [1.0, 0.3333, 1.0, 0.1667]
    """
    hits_BK, relevant_B = _checked(hits_BK, relevant_B)
    places = hits_BK.shape[1]
    precision_BK = hits_BK.cumsum(axis=1) / np.arange(1, places + 1)
    return (hits_BK * precision_BK).sum(axis=1) / np.minimum(relevant_B, places)


METRICS: dict[str, Metric] = {
    "recall": recall_at_k,
    "ndcg": ndcg_at_k,
    "mrr": mrr_at_k,
    "hit_rate": hit_rate_at_k,
    "map": map_at_k,
}
"""Metric name, as it stands before the ``@`` of "ndcg@10", to function."""


def _checked(hits_BK: Any, relevant_B: Any) -> tuple[Array, Array]:
    hits_BK = np.asarray(hits_BK, dtype=bool)
    relevant_B = np.asarray(relevant_B, dtype=np.int64)
    if hits_BK.ndim != 2 or hits_BK.shape[1] < 1 or relevant_B.shape != hits_BK.shape[:1]:
        raise UserError(
            f"hits has shape {hits_BK.shape} and relevant {relevant_B.shape}; "
            "they must be (users, k) with k >= 1, and (users,)."
        )
    if (relevant_B < 1).any():
        users = np.flatnonzero(relevant_B < 1)
        raise UserError(
            f"Every user needs a relevant item; {len(users)} of {len(relevant_B)} users have no relevant item "
            f"(the first is row {users[0]}). Leave them out."
        )
    found_B = hits_BK.sum(axis=1)
    if (found_B > relevant_B).any():
        row = int(np.flatnonzero(found_B > relevant_B)[0])
        raise UserError(
            f"row {row} has {found_B[row]} hits but {relevant_B[row]} relevant items. Check the ranked list for "
            "duplicates."
        )
    return hits_BK, relevant_B
