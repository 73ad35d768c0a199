"""The parts of a ranking task that are measured on their own."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avrec.batch import Array, Ragged, RankingTask, UserError

FEWEST = 5
"""Users of a labelled slice: the mean of fewer says nothing."""

DECILES = 10


@dataclass(frozen=True)
class Slice:
    """A part of a task: some of its users, some of their relevant items, some of the candidates.

    Attributes:
        name: "all", "cold_items" or "cold_candidates"; of labelled slices such as "history_length: 1-5".
        rows: row numbers of its users in the task.
        relevant: for each of these users, the relevant items that count here, at least one.
        candidates: "all", "cold", or "some" where the task leaves warm items out; slices of the same candidates
            share one ranking.
    """

    name: str
    rows: Array
    relevant: Ragged
    candidates: str


def slices_of(task: RankingTask) -> list[Slice]:
    """The slices that the task has users for.

    "all" is the task itself. "cold_items" are the users with a cold relevant item, asked for those only, among all
    candidates: does a new item get through between the known ones? "cold_candidates" asks the same of the same users
    among the cold candidates only: are the new items told apart? The latter two are there only where some user has
    a cold relevant item, and not where all candidates of the task are cold: "all" is both of them then.

    Raises:
        UserError: the task has no users.
    """
    if len(task) == 0:
        raise UserError(
            f"the {task.split} split has no users to rank for (left out: {task.dropped or 'none'}); at least one is "
            "needed. Widen the split or loosen its filters."
        )
    candidates = _kind(task)
    whole = Slice("all", np.arange(len(task)), task.relevant, candidates)
    rows, relevant = _restricted(task.relevant, np.asarray(task.cold_N, dtype=bool))
    if len(rows) == 0 or candidates == "cold":
        return [whole]
    return [
        whole,
        Slice("cold_items", rows, relevant, candidates),
        Slice("cold_candidates", rows, relevant, "cold"),
    ]


def candidates_of(task: RankingTask, name: str) -> Array:
    """True where an item is among the candidates of that name (``Slice.candidates``), bool, (N,)."""
    every_N = np.asarray(task.candidates_N, dtype=bool)
    return every_N & task.cold_N if name == "cold" else every_N


def user_slices(task: RankingTask, name: str, label_E: Any) -> list[Slice]:
    """Split the task's users by a label: for whom does the model work?

    Args:
        task: the question.
        name: what the labels tell; slices are called "name: label".
        label_E: one label per evaluated user, of any kind; None, NaN and "" are no label.

    Returns:
        A slice per label, in the order of the labels (numbers in them by value), of the task's own candidates.
        Labels of fewer than 5 users are left out.

    Raises:
        UserError: not one label per evaluated user.
    """
    codes_E, labels = _coded(label_E, len(task), f"{name}: evaluated users")
    slices = []
    for code, label in enumerate(labels):
        rows = np.flatnonzero(codes_E == code)
        slices.append(Slice(f"{name}: {label}", rows, task.relevant.take(rows), _kind(task)))
    return _large(slices)


def item_slices(task: RankingTask, name: str, label_N: Any) -> list[Slice]:
    """Split what is to be found by a label of the items: what does the model find?

    A user belongs to every label that one of its relevant items has, and is asked for these items only, among all
    candidates of the task, as in "cold_items". Its other relevant items may stand above them, so that a perfect
    ranking of the whole is not a perfect ranking here.

    Args:
        task: the question.
        name: what the labels tell; slices are called "name: label".
        label_N: one label per item of the catalogue, of any kind; None, NaN and "" are no label.

    Returns:
        A slice per label, in the order of the labels (numbers in them by value). Labels of fewer than 5 users are
        left out.

    Raises:
        UserError: not one label per item.
    """
    codes_N, labels = _coded(label_N, len(task.candidates_N), f"{name}: items")
    slices = []
    for code, label in enumerate(labels):
        rows, relevant = _restricted(task.relevant, codes_N == code)
        slices.append(Slice(f"{name}: {label}", rows, relevant, _kind(task)))
    return _large(slices)


def length_labels(length_E: Any, ends: Sequence[int] = (5, 20, 50)) -> list[str]:
    """Labels of counts by range, 0 for itself.

    >>> length_labels([0, 1, 5, 6, 50, 51])
    ['0', '1-5', '1-5', '6-20', '21-50', '51-']

    Args:
        length_E: whole numbers from 0, such as the number of history items.
        ends: the last count of each range but the open one, rising, from 1.
    """
    starts = [1, *(end + 1 for end in ends)]
    names = ["0", *(f"{a}-{b}" for a, b in zip(starts, ends, strict=False)), f"{starts[-1]}-"]
    return [names[place] for place in np.searchsorted(starts, np.asarray(length_E), side="right")]


def decile_labels(task: RankingTask) -> list[str]:
    """Which tenth of the warm items an item's popularity puts it in: "decile 1" are the least popular ones.

    Equally popular items are in the same tenth, that of their middle one, so tenths may be empty. Cold items have
    no label.

    Args:
        task: knows the items' popularity.

    Returns:
        N labels; "" for cold items.
    """
    popularity_N, warm_N = np.asarray(task.popularity_N), ~np.asarray(task.cold_N, dtype=bool)
    ordered = np.sort(popularity_N[warm_N])
    below_N, upto_N = (np.searchsorted(ordered, popularity_N, side) for side in ("left", "right"))
    tenth_N = (below_N + upto_N) * DECILES // (2 * max(1, len(ordered))) + 1
    return [
        f"decile {min(tenth, DECILES)}" if warm else ""
        for tenth, warm in zip(tenth_N.tolist(), warm_N.tolist(), strict=True)
    ]


def present_labels(present_NM: Array, modalities: Sequence[str]) -> list[str]:
    """Which modalities an item has, in words.

    >>> present_labels(np.array([[True, True], [False, True], [False, False]]), ["text", "vision"])
    ['text+vision', 'vision', 'none']

    Args:
        present_NM: True where the item has that modality.
        modalities: their names.
    """
    patterns, which_N = np.unique(np.asarray(present_NM, dtype=bool), axis=0, return_inverse=True)
    names = [
        "+".join(name for name, there in zip(modalities, pattern, strict=True) if there) or "none"
        for pattern in patterns
    ]
    return [names[which] for which in which_N.reshape(-1).tolist()]


def _kind(task: RankingTask) -> str:
    """What the task's own candidates are called."""
    every_N = candidates_of(task, "all")
    return "all" if every_N.all() else "some" if (every_N & ~np.asarray(task.cold_N, dtype=bool)).any() else "cold"


def _restricted(relevant: Ragged, keep_N: Array) -> tuple[Array, Ragged]:
    """The rows that have a kept item, and their kept items."""
    kept = keep_N[relevant.values]
    before = np.concatenate([[0], np.cumsum(kept)])
    starts = before[relevant.starts]
    rows = np.flatnonzero(np.diff(starts))
    return rows, Ragged(np.append(starts[rows], starts[-1]), relevant.values[kept])


def _large(slices: list[Slice]) -> list[Slice]:
    return [part for part in slices if len(part.rows) >= FEWEST]


def _coded(labels: Any, expected: int, what: str) -> tuple[Array, list[str]]:
    """Each label's place among the distinct ones (-1: no label), and the distinct ones in order."""
    given = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if len(given) != expected:
        raise UserError(
            f"{what}: {len(given)} labels were given for {expected}; there must be one for each, "
            "with None for those that have none."
        )
    texts = ["" if label is None or (isinstance(label, float) and math.isnan(label)) else str(label) for label in given]
    distinct = sorted(set(texts) - {""}, key=_natural)
    place = {"": -1} | {label: code for code, label in enumerate(distinct)}
    return np.fromiter((place[text] for text in texts), dtype=np.int64, count=len(texts)), distinct


def _natural(label: str) -> list[tuple[int, str]]:
    """Orders "6-20" before "21-50", and "decile 2" before "decile 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", label) if part]
