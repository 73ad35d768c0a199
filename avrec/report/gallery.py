"""Example users: history, recommendations and held-out items."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from avrec.batch import Array
from avrec.evaluation.ranking import EmbeddingScorer, find_hits, ranks, top_k
from avrec.ranking_task import Ragged
from avrec.report.inputs import ReportInputs

SHOWN = 8
PER_KIND = 2
MOST_USERS = 1000
"""Evaluated users that the examples are chosen from."""

KINDS = {
    "typical": "a history of median length",
    "new": "the shortest history",
    "best served": "the most hits in the recommendations",
    "worst served": "the lowest rank of the best held-out item",
}


@dataclass(frozen=True)
class Tile:
    """An item in a row of items."""

    item: int
    title: str
    rank: int = 0
    """Its rank for this user; 0: unknown."""
    hit: bool = False
    """Recommended and held out."""
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


def people(inputs: ReportInputs) -> list[Person]:
    """Example users, chosen by rule."""
    whole = inputs.task
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[:MOST_USERS])
    task = replace(
        whole, user_index_E=whole.user_index_E[rows], relevant=whole.relevant.take(rows), seen=whole.seen.take(rows)
    )
    history = inputs.history.take(rows)
    scorer = EmbeddingScorer(inputs.query_ED[rows].cpu(), inputs.item_ND.cpu())
    rank_of = Ragged(task.relevant.starts, ranks(scorer, task))
    top_EK = top_k(scorer, task, SHOWN)
    hits_EK = find_hits(top_EK, task.relevant, len(task.candidates_N))
    return [
        _person(inputs, kind, inputs.user_ids[rows[row]], history[row], (top_EK[row], hits_EK[row]), chosen)
        for kind, row in _choose(np.diff(history.starts), rank_of)
        for chosen in [(task.relevant[row], rank_of[row])]
    ]


def _choose(history_E: Array, rank_of: Ragged) -> Iterator[tuple[str, int]]:
    best_E = np.asarray([rank_of[row].min() for row in range(len(rank_of))])
    hits_E = np.asarray([(rank_of[row] <= SHOWN).sum() for row in range(len(rank_of))])
    orders = (np.abs(history_E - np.median(history_E)), history_E, -hits_E, -best_E)
    taken: set[int] = set()
    for kind, order in zip(KINDS, orders, strict=True):
        free = [row for row in np.argsort(order, kind="stable").tolist() if row not in taken]
        for row in free[:PER_KIND]:
            taken.add(row)
            yield kind, row


def _person(
    inputs: ReportInputs,
    kind: str,
    user_id: str,
    history: Array,
    top: tuple[Array, Array],
    chosen: tuple[Array, Array],
) -> Person:
    cold_N = inputs.task.cold_N

    def tile(item: int, rank: int = 0, hit: bool = False) -> Tile:
        return Tile(item, inputs.title(item), rank, hit, bool(cold_N[item]))

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
