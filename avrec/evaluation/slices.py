"""Slices: the parts of a ranking task that are evaluated on their own."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError
from avrec.ranking_task import Ragged, RankingTask

FEWEST = 5
"""Users of a labelled slice, at least."""

DECILES = 10
MOST_NAMED = 12
"""Values of a column in an error message, at most."""


@dataclass(frozen=True)
class Slice:
    """A part of a task: some of its users, some of their relevant items, some of the candidates.

    Attributes:
        name: "all", "cold_items" or "cold_candidates"; of candidates that share a value, "region=EU"; of labelled
            slices such as "history_length: 1-5".
        rows: row numbers of its users in the task.
        relevant: for each of these users, the relevant items that count here, at least one.
        candidates: "all", "cold", "some" where the task leaves warm items out, or "region=EU"; slices of the same
            candidates share one ranking.
        candidates_N: True where the item is one of them.
        group: of a labelled slice, what the labels say: "history_length"; "" for any other.
        label: its own label, such as "1-5".
    """

    name: str
    rows: Array
    relevant: Ragged
    candidates: str
    candidates_N: Array
    group: str = ""
    label: str = ""


def slices_of(task: RankingTask) -> list[Slice]:
    """The slices that the task has users for.

    "all" is the task itself. "cold_items" has the users with a cold relevant item, and only these items as relevant,
    ranked among all candidates. "cold_candidates" has the same users and items, ranked among the cold candidates. The
    latter two exist only where some user has a cold relevant item and some candidate is warm.

    Raises:
        UserError: the task has no users.
    """
    if len(task) == 0:
        raise UserError(
            f"The {task.split} split has no users (dropped: {task.dropped or 'none'}). Widen the split or loosen its "
            "filters."
        )
    cold_N = np.asarray(task.cold_N, dtype=bool)
    whole = _slice(task, "all", np.arange(len(task)), task.relevant)
    rows, relevant = _restricted(task.relevant, cold_N)
    if len(rows) == 0 or whole.candidates == "cold":
        return [whole]
    among = Slice("cold_candidates", rows, relevant, "cold", whole.candidates_N & cold_N)
    return [whole, _slice(task, "cold_items", rows, relevant), among]


def candidate_slice(task: RankingTask, wanted: Mapping[str, Sequence[str]], label_N: Mapping[str, Any]) -> Slice:
    """The task with the items of certain values as candidates: the users with a relevant item among them.

    Args:
        task: the question.
        wanted: by column, the values that an item may have; it must have one of every column's.
        label_N: by column, each item's value, or a tuple of values.

    Raises:
        UserError: there is no such user.
    """
    keep_N = np.asarray(task.candidates_N, dtype=bool).copy()
    for column, values in wanted.items():
        allowed = {str(value) for value in values}
        keep_N &= np.fromiter((bool(allowed & _labels(given)) for given in label_N[column]), bool, len(keep_N))
    name = ", ".join(f"{column}={'|'.join(str(value) for value in values)}" for column, values in wanted.items())
    name = name.replace(": ", ":")  # in results without kinds, ": " marks a label
    rows, relevant = _restricted(task.relevant, keep_N)
    if len(rows) == 0:
        have = {c: sorted({one for row in label_N[c] for one in _labels(row)})[:MOST_NAMED] for c in wanted}
        raise UserError(
            f"evaluation.candidates must include a held-out item; of the {int(keep_N.sum())} candidates with {name}, "
            f"none is one of the {task.split} split. Values: "
            f"{'; '.join(f'{c} has ' + (', '.join(values) or 'none') for c, values in have.items())}."
        )
    return Slice(name, rows, relevant, name, keep_N)


def user_slices(task: RankingTask, name: str, label_E: Any) -> list[Slice]:
    """Split the task's users by a label, one per evaluated user.

    Labels may be of any kind, a tuple is several; None, NaN and "" are none.

    Returns:
        A slice "name: label" per label, in the order of the labels (numbers in them by value), of the task's own
        candidates. Labels of fewer than 5 users are left out.

    Raises:
        UserError: not one label per evaluated user.
    """
    slices = []
    for label, rows_E in _by_label(label_E, len(task), f"{name}: evaluated users").items():
        rows = np.flatnonzero(rows_E)
        slices.append(_labelled(task, name, label, rows, task.relevant.take(rows)))
    return _large(slices)


def item_slices(task: RankingTask, name: str, label_N: Any) -> list[Slice]:
    """Split the held-out items by a label of the items, one per item of the catalogue.

    Labels, slices and errors are as in ``user_slices``.

    A user belongs to every label that one of its relevant items has, and is asked for these items only, among all
    candidates of the task, as in "cold_items". Its other relevant items may stand above them, so that a perfect
    ranking of the whole is not a perfect ranking here.
    """
    labels = _by_label(label_N, len(task.candidates_N), f"{name}: items")
    parts = ((label, *_restricted(task.relevant, keep_N)) for label, keep_N in labels.items())
    return _large([_labelled(task, name, label, rows, relevant) for label, rows, relevant in parts])


def target_slices(task: RankingTask, name: str, label_J: Any) -> list[Slice]:
    """Split the held-out items by a label of each (user, relevant item) pair, such as its age.

    As ``item_slices``, with one label per value of ``task.relevant``.
    """
    labels = _by_label(label_J, len(task.relevant.values), f"{name}: relevant items")
    parts = ((label, *_kept(task.relevant, keep_J)) for label, keep_J in labels.items())
    return _large([_labelled(task, name, label, rows, relevant) for label, rows, relevant in parts])


def length_labels(length_E: Any, ends: Sequence[int] = (5, 20, 50)) -> list[str]:
    """Labels of counts by the last of each range but the open one; 0 is a range for itself.

    >>> length_labels([0, 1, 5, 6, 50, 51])
    ['0', '1-5', '1-5', '6-20', '21-50', '51-']
    """
    starts = [1, *(end + 1 for end in ends)]
    names = ["0", *(f"{a}-{b}" for a, b in zip(starts, ends, strict=False)), f"{starts[-1]}-"]
    return [names[place] for place in np.searchsorted(starts, np.asarray(length_E), side="right")]


def day_labels(days_J: Any, ends: Sequence[int] = (1, 7, 30, 90)) -> list[str]:
    """Labels of times by the end of each range but the open one, where the next begins; what is not known has none.

    >>> day_labels([0.0, 1.0, 6.9, 400.0, float("nan")])
    ['0-1', '1-7', '1-7', '90-', '']
    """
    starts = [0, *ends]
    names = [*(f"{a}-{b}" for a, b in zip(starts, ends, strict=False)), f"{starts[-1]}-", ""]
    days_J = np.asarray(days_J, dtype=np.float64)
    places = np.where(np.isnan(days_J), len(ends) + 1, np.searchsorted(ends, days_J, side="right"))
    return [names[place] for place in places]


def decile_labels(task: RankingTask) -> list[str]:
    """Which tenth of the warm items an item's popularity puts it in: "decile 1" are the least popular ones.

    Equally popular items are in the same tenth, that of their middle one, so tenths may be empty. Cold items have
    the label "".
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
    """
    return [
        "+".join(name for name, there in zip(modalities, present_M, strict=True) if there) or "none"
        for present_M in present_NM.tolist()
    ]


def _slice(task: RankingTask, name: str, rows: Array, relevant: Ragged) -> Slice:
    """A slice of the task's own candidates."""
    every_N = np.asarray(task.candidates_N, dtype=bool)
    warm = (every_N & ~np.asarray(task.cold_N, dtype=bool)).any()
    return Slice(name, rows, relevant, "all" if every_N.all() else "some" if warm else "cold", every_N)


def _labelled(task: RankingTask, group: str, label: str, rows: Array, relevant: Ragged) -> Slice:
    return replace(_slice(task, f"{group}: {label}", rows, relevant), group=group, label=label)


def _restricted(relevant: Ragged, keep_N: Array) -> tuple[Array, Ragged]:
    """The rows that have a kept item, and their kept items."""
    return _kept(relevant, keep_N[relevant.values])


def _kept(relevant: Ragged, kept_J: Array) -> tuple[Array, Ragged]:
    before = np.concatenate([[0], np.cumsum(kept_J)])
    starts = before[relevant.starts]
    rows = np.flatnonzero(np.diff(starts))
    return rows, Ragged(np.append(starts[rows], starts[-1]), relevant.values[kept_J])


def _large(slices: list[Slice]) -> list[Slice]:
    return [part for part in slices if len(part.rows) >= FEWEST]


def _by_label(labels: Any, expected: int, what: str) -> dict[str, Array]:
    """By label, in order: True where the row has it."""
    given = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if len(given) != expected:
        raise UserError(f"{what}: {len(given)} labels were given for {expected}; there must be one for each, or None.")
    found: defaultdict[str, Array] = defaultdict(lambda: np.zeros(expected, dtype=bool))
    for row, label in enumerate(given):
        for name in _labels(label):
            found[name][row] = True
    return {name: found[name] for name in sorted(found, key=_natural)}


def _labels(given: Any) -> set[str]:
    """The names of a label, or of a tuple of labels; None, NaN and "" are none."""
    each = given if isinstance(given, tuple) else (given,)
    return {str(one) for one in each if not (one is None or one == "" or (isinstance(one, float) and math.isnan(one)))}


def _natural(label: str) -> list[tuple[int, str]]:
    """Orders "6-20" before "21-50", and "decile 2" before "decile 10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", label) if part]
