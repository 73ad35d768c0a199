"""Comparison of two models over the same users, slice by slice, with a significance test of each difference."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from avrec.batch import Array
from avrec.errors import UserError
from avrec.evaluation.evaluator import user_values
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import Scorer
from avrec.evaluation.significance import LEVEL, holm, paired_test
from avrec.evaluation.slices import Slice
from avrec.ranking_task import RankingTask


class Contender(NamedTuple):
    """A model, by its name in the results, and its task."""

    name: str
    scorer: Scorer
    task: RankingTask
    slices: Sequence[Slice] = ()
    """Beside ``slices_of(task)``."""


@dataclass(frozen=True)
class Comparison:
    """One metric of two models on one slice.

    Attributes:
        a: name of the first model; ``b`` is the second's, and split, slice and metric are as in a ``Result``.
        users: evaluated with both.
        value_a: the first model's mean over them.
        value_b: the second model's mean over them.
        difference: the first minus the second; ``low`` and ``high`` are the ends of its bootstrap interval.
        p: of the two-sided sign-flip test of this slice alone.
        p_holm: of a slice, Holm-corrected over the slices of this metric; of all users, ``p``.
    """

    a: str
    b: str
    split: str
    slice: str
    metric: str
    users: int
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    def as_dict(self) -> dict[str, Any]:
        """As it stands in evaluation.json."""
        return asdict(self) | {"sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """The better model, the size of the difference, and the corrected p."""
        place, p = f"on {self.slice} ({self.metric})", "p<.001" if self.p_holm < 0.001 else f"p={_short(self.p_holm)}"
        if self.p_holm > 1 - LEVEL:
            size = f"{_short(self.difference, '+')} [{_short(self.low)}, {_short(self.high)}]"
            return f"{self.a} and {self.b} do not differ significantly {place}: {size}, {p}"
        better, low, high = (self.a, self.low, self.high) if self.difference > 0 else (self.b, -self.high, -self.low)
        size = f"{_short(abs(self.difference), '+')} [{_short(low)}, {_short(high)}]"
        return f"{better} is better {place} by {size}, {p}"


def compare(
    a: Contender, b: Contender, k: int = 10, metrics: Sequence[str] = ("recall", "ndcg", "mrr"), seed: int = 0
) -> list[Comparison]:
    """Compare two models user by user on each slice that both have.

    Users are matched by their index in the catalogue, and left out where only one model has them. Metrics outside
    ``METRICS``, which have no best value, are skipped.

    Returns:
        One comparison per slice and metric, in this order.

    Raises:
        UserError: the tasks differ or share no user, or no metric can be compared.
    """
    metrics = comparable(metrics)
    check_same_question((a.name, b.name), a.task, b.task)
    measured_a, measured_b = (
        {
            part.name: (one.task.user_index_E[part.rows], values)
            for part, values in user_values(one.scorer, one.task, (k,), metrics, one.slices)
        }
        for one in (a, b)
    )
    found = []
    for name in (name for name in measured_a if name in measured_b):
        (users_a, values_a), (users_b, values_b) = measured_a[name], measured_b[name]
        _, rows_a, rows_b = np.intersect1d(users_a, users_b, assume_unique=True, return_indices=True)
        for metric in values_a if len(rows_a) else ():
            found.append(_one(a, b, name, metric, values_a[metric][rows_a], values_b[metric][rows_b], seed))
    return _corrected(found)


def comparable(metrics: Sequence[str]) -> list[str]:
    """The metrics of which higher is better; a ``UserError`` where there is none."""
    found = [name for name in metrics if name in METRICS]
    if not found:
        raise UserError(
            f"A comparison needs at least one of the metrics {', '.join(METRICS)}; got metrics={list(metrics)}."
        )
    return found


def check_same_question(names: tuple[str, str], one: RankingTask, other: RankingTask) -> None:
    """Raise a ``UserError`` that names the differences, unless both tasks rank for the same protocol and users."""
    settings = {
        key: (one.protocol.get(key), other.protocol.get(key)) for key in dict.fromkeys([*one.protocol, *other.protocol])
    }
    settings |= {"evaluated split": (one.split, other.split), "seen_filter": (one.seen_filter, other.seen_filter)}
    differ = [f"{key} {mine} and {theirs}" for key, (mine, theirs) in settings.items() if mine != theirs]
    if not (np.array_equal(one.candidates_N, other.candidates_N) and np.array_equal(one.cold_N, other.cold_N)):
        differ.append("their candidates")
    _, rows, others = np.intersect1d(one.user_index_E, other.user_index_E, assume_unique=True, return_indices=True)
    mine, theirs = one.relevant.take(rows), other.relevant.take(others)
    if len(rows) == 0:
        differ.append("their users: they share none")
    elif not (np.array_equal(mine.starts, theirs.starts) and np.array_equal(mine.values, theirs.values)):
        differ.append("their held-out items")
    if differ:
        raise UserError(
            f"Both runs must have the same catalogue, split and seen filter; {names[0]} and {names[1]} differ in "
            f"{'; '.join(differ)}."
        )


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """A table to print: a row per slice and metric, significant differences bold."""
    first = comparisons[0]
    a, b = escape(first.a), escape(first.b)
    level = f"{LEVEL:.0%}".replace("%", " %")
    table = Table(
        title=f"{first.split}: {a} against {b}",
        title_justify="left",
        caption=f"difference: {a} minus {b}, below it its bootstrap interval over users, {level}; "
        "p: paired sign-flip test; of slices, Holm-corrected over them",
        caption_justify="left",
    )
    for name in ("slice", "metric", "users", a, b, "difference", "p"):
        table.add_column(name, justify="left" if name in ("slice", "metric") else "right", max_width=24)
    for one in comparisons:
        size = (f"{one.difference:+.4f}", "bold" if one.p_holm <= 1 - LEVEL else "")
        ends = (f"\n{one.low:+.3f} {one.high:+.3f}", "dim")
        values = f"{one.users:,}", f"{one.value_a:.4f}", f"{one.value_b:.4f}"
        table.add_row(escape(one.slice), one.metric, *values, Text.assemble(size, ends), f"{one.p_holm:.4f}")
    return table


def _one(a: Contender, b: Contender, name: str, metric: str, a_E: Array, b_E: Array, seed: int) -> Comparison:
    test = paired_test(a_E, b_E, seed)
    return Comparison(
        a=a.name,
        b=b.name,
        split=a.task.split,
        slice=name,
        metric=metric,
        users=len(a_E),
        value_a=float(a_E.mean()),
        value_b=float(b_E.mean()),
        **test._asdict(),
        p_holm=test.p,
    )


def _corrected(found: list[Comparison]) -> list[Comparison]:
    """Correct over the slices of each metric; the comparison over all users is the primary one and stays as it is."""
    corrected: dict[int, float] = {}
    for metric in dict.fromkeys(one.metric for one in found):
        family = [place for place, one in enumerate(found) if one.metric == metric and one.slice != "all"]
        corrected |= dict(zip(family, holm(np.array([found[place].p for place in family])).tolist(), strict=True))
    return [replace(one, p_holm=corrected.get(place, one.p)) for place, one in enumerate(found)]


def _short(value: float, sign: str = "-") -> str:
    """Three digits without the leading zero: .012, -.004."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.3f}"
