"""Baselines that are fitted in closed form or look for neighbours: item-kNN, EASE and content-kNN.

All are linear in the user's history: a score is the sum of what each history item says for the candidate.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.evaluation.ranking import EmbeddingScorer
from avrec.ranking_task import Ragged

MOST_ITEMS = 15_000
"""Item-kNN and EASE hold N x N numbers, and EASE inverts them: above this many items they are left out."""
_CELLS = 2**25


@dataclass
class SimilarityScorer:
    """The sum of an item's similarities (row: history item; column: candidate) to each evaluated user's history."""

    history: Ragged
    similarity_NN: Tensor

    def __call__(self, rows: Array) -> Tensor:
        """The scores of these users."""
        return torch.sparse.mm(_counts(self.history, rows, len(self.similarity_NN)), self.similarity_NN)


def item_knn(everyone: Ragged, num_items: int, neighbours: int = 100, shrink: float = 10.0) -> Tensor:
    """Similarities of item-kNN: cosine of the items' users, for each candidate's nearest neighbours only.

    Args:
        everyone: items of every user, as far as known.
        num_items: N.
        neighbours: kept per candidate; the others' similarity is 0.
        shrink: added to the denominator, against similarities that rest on few users.

    Reference:
        Deshpande & Karypis, Item-Based Top-N Recommendation Algorithms (2004).
    """
    together_NN = _together(everyone, num_items)
    users_N = together_NN.diagonal().clone()
    similarity_NN = together_NN / ((users_N[:, None] * users_N).sqrt() + shrink)
    similarity_NN.fill_diagonal_(0)
    best, place = similarity_NN.topk(min(neighbours, num_items), dim=0)
    return torch.zeros_like(similarity_NN).scatter_(0, place, best)


def ease(everyone: Ragged, num_items: int, regularisation: float = 500.0) -> Tensor:
    """Weights of EASE, the linear autoencoder that may not explain an item by itself.

    Args:
        everyone: items of every user, as far as known.
        num_items: N.
        regularisation: L2, the paper's λ.

    Reference:
        Steck, Embarrassingly Shallow Autoencoders for Sparse Data (2019), equation 8.
    """
    gram_NN = _together(everyone, num_items).double()
    gram_NN.diagonal().add_(regularisation)
    inverse_NN = torch.cholesky_inverse(torch.linalg.cholesky(gram_NN))
    weights_NN = -inverse_NN / inverse_NN.diagonal()
    weights_NN.fill_diagonal_(0)
    return weights_NN.float()


def content_vectors(modalities: Iterable[tuple[Tensor, Array]], known_N: Array) -> Tensor:
    """Items as the concatenation of their modalities' centred unit vectors; what is missing is zeros.

    The product of two such vectors is the sum of the modalities' cosines.

    Args:
        modalities: values (N, width) and ``present_N`` of each.
        known_N: items whose mean is the centre: those that may be known when a model is trained.
    """
    parts = []
    for values, present in modalities:
        present_N = torch.from_numpy(present).to(values.device)
        centre = values[present_N & torch.from_numpy(known_N).to(values.device)].mean(0, keepdim=True)
        parts.append(torch.nn.functional.normalize(values - centre.nan_to_num(), dim=1) * present_N[:, None])
    return torch.cat(parts, dim=1)


def content_knn(vectors_ND: Tensor, history: Ragged) -> EmbeddingScorer:
    """Scores by content alone: the product of an item's ``content_vectors`` with the mean of the history items'."""
    length_E = torch.from_numpy(np.diff(history.starts)).clamp(min=1)
    sum_ED = torch.sparse.mm(_counts(history, np.arange(len(history)), len(vectors_ND)), vectors_ND)
    return EmbeddingScorer(sum_ED / length_E[:, None], vectors_ND)


def _counts(history: Ragged, rows: Array, num_items: int) -> Tensor:
    """How often each item stands in these users' histories, float32, sparse (B, N)."""
    chosen = history.take(rows)
    users = chosen.rows()
    places = torch.from_numpy(np.stack([users, chosen.values]))
    ones, shape = torch.ones(places.shape[1]), (len(rows), num_items)
    return torch.sparse_coo_tensor(places, ones, shape, check_invariants=True).coalesce()


def _together(everyone: Ragged, num_items: int) -> Tensor:
    """How many users have both items, float32, (N, N)."""
    together_NN = torch.zeros(num_items, num_items)
    chunk = max(1, _CELLS // num_items)
    for start in range(0, len(everyone), chunk):
        counts_BN = _counts(everyone, np.arange(start, min(start + chunk, len(everyone))), num_items)
        having_BN = counts_BN.to_dense().clamp(max=1)
        together_NN += torch.sparse.mm(having_BN.T.to_sparse(), having_BN)
    return together_NN
