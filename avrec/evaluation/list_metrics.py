"""Beyond-accuracy metrics of ranked lists, which need no relevant items.

Every function takes ``top_EK``, the items of each list, best first, -1 where a list is shorter (what
``ranking.top_k`` returns), and what it needs of ``candidates_N`` (True where the item may be recommended),
``popularity_N`` (interactions of each item) and ``item_ND`` (a vector per item). It returns one float64 per list, but
for coverage; an empty list, no candidate or no vectors is a ``UserError``.

Higher is not better: a random list has more coverage, novelty and diversity than a good one. Read them beside recall
or NDCG.
"""

from collections.abc import Callable

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError

ListMetric = Callable[[Array, Array, Array, Array | None], Array]
"""``(top_EK, candidates_N, popularity_N, item_ND) -> values``: per list, or one number of all lists (shape ``()``)."""


def coverage_at_k(top_EK: Array, candidates_N: Array) -> float:
    """The share of the candidates that stand in anyone's list.

    ``coverage@k = distinct recommended candidates / candidates``

    It grows with the number of lists, so compare it over the same users only; it is no mean over users and has no
    interval. One list is enough to cover an item: how evenly the items are recommended it does not tell.

    Four users, k = 2, six candidates: the items 0, 1, 2 and 4 are recommended.

    >>> top = np.array([[0, 1], [1, 0], [2, 1], [4, -1]])
    >>> round(coverage_at_k(top, np.ones(6, bool)), 4)
    0.6667
    """
    candidates_N = np.asarray(candidates_N, dtype=bool)
    if not candidates_N.any():
        raise UserError("coverage needs at least one candidate; there are no candidates.")
    found_N = np.zeros(len(candidates_N), dtype=bool)
    found_N[top_EK[top_EK >= 0]] = True
    return float((found_N & candidates_N).sum() / candidates_N.sum())


def novelty_at_k(top_EK: Array, popularity_N: Array) -> Array:
    """How surprising the list's items are: their mean self-information in bits, from their popularity.

    ``novelty@k = mean over the list of -log2((popularity + 1) / sum over items of (popularity + 1))``

    The 1 that is added to every item (Laplace) gives items without any interaction the share of half an item with
    one, where the plain share would be 0 and its logarithm infinite. Grows by 1 where an item is half as popular;
    says nothing of what this user knows already. Values of catalogues of different sizes cannot be compared.

    Four users, k = 2: shares of 1/2, 1/4, 1/8 and 1/8 of the interactions, with one more for each item.

    >>> popularity = np.array([7, 3, 1, 1])
    >>> novelty_at_k(np.array([[0, 1], [1, 0], [2, 3], [3, -1]]), popularity).tolist()
    [1.5, 1.5, 3.0, 3.0]

    Reference:
        Zhou et al., Solving the apparent diversity-accuracy dilemma of recommender systems (PNAS 2010).
    """
    smoothed_N = np.asarray(popularity_N, dtype=np.float64) + 1.0
    return _mean(top_EK, -np.log2(smoothed_N / smoothed_N.sum()))


def popularity_at_k(top_EK: Array, popularity_N: Array, candidates_N: Array) -> Array:
    """Popularity bias: the mean popularity percentile of the list's items, 0 (least popular) to 1 (most popular).

    ``popularity@k = mean over the list of (candidates less popular + half of those as popular) / candidates``

    A list drawn at random from all candidates has .5 on average (with seen items left out somewhat less: users have
    seen the popular ones). Ranks only: twice as popular and barely more popular count the same.

    Four users, k = 2, four candidates, of which two are equally popular.

    >>> popularity = np.array([9, 5, 0, 0])
    >>> top = np.array([[0, 1], [1, 0], [2, 3], [3, -1]])
    >>> popularity_at_k(top, popularity, np.ones(4, bool)).tolist()
    [0.75, 0.75, 0.25, 0.25]
    """
    popularity_N = np.asarray(popularity_N, dtype=np.float64)
    ordered = np.sort(popularity_N[np.asarray(candidates_N, dtype=bool)])
    below_N, upto_N = (np.searchsorted(ordered, popularity_N, side) for side in ("left", "right"))
    return _mean(top_EK, (below_N + upto_N) / 2 / max(1, len(ordered)))


def diversity_at_k(top_EK: Array, item_ND: Array | None) -> Array:
    """How unlike each other the items of a list are: 1 minus their mean cosine, 0 to 2.

    ``diversity@k = 1 - mean over pairs of the list of cosine(item, item)``

    As good as the vectors: those of the model that made the list flatter it, so take the same vectors for all models.
    A vector of zeros has cosine 0 with all, and a list of fewer than two items diversity 0.

    Four users, k = 2: the same direction; at right angles; opposite; and one item, which makes no pair.

    >>> vectors = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> diversity_at_k(np.array([[0, 1], [0, 2], [0, 3], [0, -1]]), vectors).tolist()
    [0.0, 1.0, 2.0, 0.0]

    Reference:
        Ziegler et al., Improving recommendation lists through topic diversification (WWW 2005): intra-list similarity.
    """
    if item_ND is None:
        raise UserError("The metric diversity needs an encoder that reads content. Remove it from the metrics.")
    item_ND = np.asarray(item_ND, dtype=np.float64)
    unit_ND = item_ND / np.maximum(np.linalg.norm(item_ND, axis=1, keepdims=True), 1e-300)
    square_N = np.square(unit_ND).sum(axis=1)
    # The square of the sum of a list's unit vectors holds every pair twice, and each item with itself.
    sum_ED, own_E = np.zeros((len(top_EK), item_ND.shape[1])), np.zeros(len(top_EK))
    for top_E in top_EK.T:
        there_E = top_E >= 0
        sum_ED[there_E] += unit_ND[top_E[there_E]]
        own_E[there_E] += square_N[top_E[there_E]]
    lengths_E = (top_EK >= 0).sum(axis=1)
    pairs_E = np.maximum(lengths_E * (lengths_E - 1.0), 1.0)
    return np.where(lengths_E > 1, 1.0 - (np.square(sum_ED).sum(axis=1) - own_E) / pairs_E, 0.0)


LIST_METRICS: dict[str, ListMetric] = {
    "coverage": lambda top_EK, candidates_N, *_: np.asarray(coverage_at_k(top_EK, candidates_N)),
    "novelty": lambda top_EK, _, popularity_N, __: novelty_at_k(top_EK, popularity_N),
    "diversity": lambda top_EK, _, __, item_ND: diversity_at_k(top_EK, item_ND),
    "popularity": lambda top_EK, candidates_N, popularity_N, _: popularity_at_k(top_EK, popularity_N, candidates_N),
}
"""Metric name, as it stands before the ``@`` of "coverage@10", to function."""


def _mean(top_EK: Array, value_N: Array) -> Array:
    """Mean of the items' values over each list."""
    there_EK = top_EK >= 0
    lengths_E = there_EK.sum(axis=1)
    if (lengths_E == 0).any():
        rows = np.flatnonzero(lengths_E == 0)
        raise UserError(
            f"Every list needs an item; {len(rows)} of {len(top_EK)} lists are empty (the first is row {rows[0]}). "
            "Leave out users without candidates."
        )
    return np.where(there_EK, value_N[top_EK], 0.0).sum(axis=1) / lengths_E
