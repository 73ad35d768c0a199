"""Modality ablation of a trained model, without retraining: each modality hidden, and each alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from avrec.batch import Array
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.ranking import EmbeddingScorer
from avrec.evaluation.results import MODEL, Kind, Result
from avrec.ranking_task import RankingTask

USERS = 512
"""Evenly spread users for the shares of variance."""

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
        without, alone = embed(~only_M), embed(only_M)
        changes.append(float((whole_BN - _scores(*without, task.candidates_N)).var(1).mean()))
        views: tuple[tuple[Kind, str, tuple[Tensor, Tensor]], ...] = (
            ("without", f"{MODEL} without {name}", without),
            ("alone", f"{MODEL}, {name} alone", alone),
        )
        for kind, model, vectors in views:
            found = evaluate(model, EmbeddingScorer(*vectors), task, ks, metrics)
            results += [replace(result, kind=kind, modality=name) for result in found]
    first, total = results[0], max(sum(changes), 1e-12)
    for name, change in zip(names, changes, strict=True):
        share = change / total
        results.append(
            replace(
                first,
                model=MODEL,
                metric=f"score_variance/{name}",
                value=share,
                low=share,
                high=share,
                users=len(whole_BN),
                protocol={**first.protocol, "interval": "none"},
                kind="variance_share",
                modality=name,
            )
        )
    return results


def _scores(query_ED: Tensor, item_ND: Tensor, candidates_N: Array) -> Tensor:
    step = max(1, len(query_ED) // USERS)
    return query_ED[::step][:USERS] @ item_ND[torch.from_numpy(candidates_N)].T
