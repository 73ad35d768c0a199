"""Modality ablation without retraining: what a trained model knows with a modality hidden, and with it alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.evaluation.ranking import EmbeddingScorer
from avrec.evaluation.results import Result, evaluate
from avrec.ranking_task import RankingTask

USERS = 512
"""Whose scores the shares of variance are taken over, evenly spread."""

VARIANCE = "score_variance/"

Embed = Callable[[Array], tuple[Tensor, Tensor]]
"""Queries (E, D) and items (N, D) where only the modalities with True in ``keep_M`` are seen."""


def ablation(
    embed: Embed, names: Sequence[str], task: RankingTask, ks: Sequence[int] = (10,), metrics: Sequence[str] = ("ndcg",)
) -> list[Result]:
    """Hide each modality (of ``names``) of all items in turn, and all but each.

    Returns:
        Results of the models "avrec without M" and "avrec, M alone", and of "avrec" a metric ``score_variance/M``:
        the variance over the candidates of what hiding M changes in a user's scores, as a share of the modalities'
        sum, over up to 512 users. Empty for fewer than two modalities.
    """
    if len(names) < 2:
        return []
    only_MM = np.eye(len(names), dtype=bool)
    whole_BN = _scores(*embed(np.ones(len(names), bool)), task.candidates_N)
    results: list[Result] = []
    changes = []
    for name, only_M in zip(names, only_MM, strict=True):
        hidden = embed(~only_M)
        changes.append(float((whole_BN - _scores(*hidden, task.candidates_N)).var(1).mean()))
        for label, vectors in ((f"avrec without {name}", hidden), (f"avrec, {name} alone", embed(only_M))):
            results += evaluate(label, EmbeddingScorer(*vectors), task, ks, metrics)
    whole, protocol = results[0].slice, {**results[0].protocol, "interval": "none"}
    for name, change in zip(names, changes, strict=True):
        metric, share = f"{VARIANCE}{name}", change / max(sum(changes), 1e-12)
        results.append(Result("avrec", task.split, whole, metric, share, share, share, len(whole_BN), protocol))
    return results


class Parts(NamedTuple):
    """Results apart: the models side by side, the model with modalities hidden, and the shares of variance."""

    whole: list[Result]
    hidden: list[Result]
    shares: list[Result]


def apart(results: Sequence[Result]) -> Parts:
    """Take what ``ablation`` adds out of a run's results: it is the model once more, and no baseline."""
    parts = Parts([], [], [])
    for result in results:
        is_share, is_hidden = result.metric.startswith(VARIANCE), result.model.startswith(("avrec ", "avrec,"))
        (parts.shares if is_share else parts.hidden if is_hidden else parts.whole).append(result)
    return parts


def _scores(query_ED: Tensor, item_ND: Tensor, candidates_N: Array) -> Tensor:
    step = max(1, len(query_ED) // USERS)
    return query_ED[::step][:USERS] @ item_ND[torch.from_numpy(candidates_N)].T
