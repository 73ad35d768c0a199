"""A few evaluated users: what they had, what they are recommended, what they really chose."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from avrec.batch import Array
from avrec.evaluation.ranking import EmbeddingScorer, Scorer, find_hits, top_k
from avrec.ranking_task import Ragged, RankingTask
from avrec.report.inputs import Material

SHOWN = 8
PER_KIND = 2
MOST_USERS = 1000
"""Evaluated users that the few are chosen from."""

KINDS = {
    "typical": "as long a history as the median user",
    "new": "the shortest history",
    "best served": "the most hits among the first recommendations",
    "worst served": "the best of the items they chose is ranked lowest",
}


@dataclass(frozen=True)
class Tile:
    """An item in a row of items."""

    item: int
    title: str
    rank: int = 0
    """Where the model ranks it for this user; 0: not asked."""
    hit: bool = False
    """Recommended, and chosen."""
    cold: bool = False
    """No interaction in training."""


@dataclass(frozen=True)
class Person:
    """One evaluated user, of one of the ``KINDS``.

    ``history`` has the last of all ``history_items``, newest first; ``chosen`` those of all ``chosen_items`` that the
    model ranks best, best first.
    """

    kind: str
    user_id: str
    history_items: int
    chosen_items: int
    history: list[Tile]
    recommended: list[Tile]
    chosen: list[Tile]


def people(material: Material) -> list[Person]:
    """Some users, chosen by rule and not by hand."""
    whole = material.task
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[:MOST_USERS])
    task = replace(
        whole, user_index_E=whole.user_index_E[rows], relevant=whole.relevant.take(rows), seen=whole.seen.take(rows)
    )
    history = material.history.take(rows)
    scorer = EmbeddingScorer(material.query_ED[rows].cpu(), material.item_ND.cpu())
    ranks = Ragged(task.relevant.starts, _ranks(scorer, task))
    top_EK = top_k(scorer, task, SHOWN)
    hits_EK = find_hits(top_EK, task.relevant, len(task.candidates_N))
    return [
        _person(material, kind, material.user_ids[rows[row]], history[row], (top_EK[row], hits_EK[row]), chosen)
        for kind, row in _choose(np.diff(history.starts), ranks)
        for chosen in [(task.relevant[row], ranks[row])]
    ]


def _choose(history_E: Array, ranks: Ragged) -> Iterator[tuple[str, int]]:
    best_E = np.asarray([ranks[row].min() for row in range(len(ranks))])
    hits_E = np.asarray([(ranks[row] <= SHOWN).sum() for row in range(len(ranks))])
    orders = (np.abs(history_E - np.median(history_E)), history_E, -hits_E, -best_E)
    taken: set[int] = set()
    for kind, order in zip(KINDS, orders, strict=True):
        free = [row for row in np.argsort(order, kind="stable").tolist() if row not in taken]
        for row in free[:PER_KIND]:
            taken.add(row)
            yield kind, row


def _person(
    material: Material,
    kind: str,
    user_id: str,
    history: Array,
    top: tuple[Array, Array],
    chosen: tuple[Array, Array],
) -> Person:
    cold_N = material.task.cold_N

    def tile(item: int, rank: int = 0, hit: bool = False) -> Tile:
        return Tile(item, material.title(item), rank, hit, bool(cold_N[item]))

    by_rank = sorted(zip(chosen[1].tolist(), chosen[0].tolist(), strict=True))
    recommended = zip(top[0].tolist(), top[1].tolist(), strict=True)
    return Person(
        kind=kind,
        user_id=user_id,
        history_items=len(history),
        chosen_items=len(by_rank),
        history=[tile(item) for item in history[::-1][:SHOWN].tolist()],
        recommended=[tile(item, place + 1, hit) for place, (item, hit) in enumerate(recommended) if item >= 0],
        chosen=[tile(item, rank, rank <= SHOWN) for rank, item in by_rank[:SHOWN]],
    )


def _ranks(scorer: Scorer, task: RankingTask, chunk: int = 256) -> Array:
    """The place of every relevant item in its user's ranking, aligned with ``task.relevant.values``."""
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(task), chunk):
        rows = np.arange(start, min(start + chunk, len(task)))
        for row, scores_N in zip(rows.tolist(), scorer(rows).numpy(), strict=True):
            relevant = task.relevant[row]
            own_R = scores_N[relevant][:, None]
            open_N = np.array(task.candidates_N, dtype=bool)
            if task.seen_filter:
                open_N[task.seen[row]] = False
            tied_RN = (scores_N == own_R) & (np.arange(len(scores_N)) < relevant[:, None])
            found.append((((scores_N > own_R) | tied_RN) & open_N).sum(axis=1) + 1)
    return np.concatenate(found)
