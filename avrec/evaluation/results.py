"""The evaluation protocol: which users and items are asked about, and how the answers are written down."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from avrec.batch import Array
from avrec.errors import UserError
from avrec.evaluation.list_metrics import LIST_METRICS
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import Scorer, find_hits, top_k
from avrec.evaluation.significance import LEVEL, SAMPLES, bootstrap_intervals
from avrec.evaluation.slices import Slice, slices_of
from avrec.io import atomic_write, moment
from avrec.ranking_task import RankingTask

ORACLE = "oracle"
NO_INTERVAL = "none: one number over all users"
_COLUMNS = 6


@dataclass(frozen=True)
class Result:
    """One number with all that is needed to read it.

    Attributes:
        model: whose ranking it is.
        split: "val" or "test".
        slice: name of the slice.
        metric: such as "ndcg@10".
        value: mean over the slice's users.
        low: lower end of the interval.
        high: upper end of the interval.
        users: how many.
        protocol: the split's settings, candidates, seen filter, ties, k and kind of interval.
    """

    model: str
    split: str
    slice: str
    metric: str
    value: float
    low: float
    high: float
    users: int
    protocol: dict[str, Any]

    @property
    def of_label(self) -> bool:
        """Its slice is one of many, by a label of users or items."""
        return ": " in self.slice

    def as_dict(self) -> dict[str, Any]:
        """As it stands in metrics.json."""
        return asdict(self)


class Report(NamedTuple):
    """What a metrics.json holds."""

    results: list[Result]
    timing: dict[str, float]
    data: dict[str, Any]


def evaluate(
    model: str,
    scorer: Scorer,
    task: RankingTask,
    ks: Sequence[int] = (10, 50),
    metrics: Sequence[str] = ("recall", "ndcg", "mrr"),
    slices: Sequence[Slice] = (),
    item_ND: Array | None = None,
) -> list[Result]:
    """Rank the catalogue for every user of the task and measure all slices, each number with its interval.

    Args:
        model: name to stand in the results.
        scorer: gives the scores; model and baselines take the same road.
        task: the question.
        ks: the k of the metrics; the catalogue is ranked once for the largest.
        metrics: names from ``METRICS`` and ``LIST_METRICS``. "coverage" is one number over all users: its ends are
            its value, and its protocol says so.
        slices: more slices than ``slices_of(task)``; of labelled ones, only the metrics of ``METRICS`` at the first
            k are measured.
        item_ND: what "diversity" compares: vectors of what the items are, the same for every model.

    Returns:
        One result per slice, k and metric, in this order.

    Raises:
        UserError: an unknown metric, a k below 1, or a task without users.
    """
    return [
        result
        for part, values in user_values(scorer, task, ks, metrics, slices, item_ND)
        for result in _results(model, task, part, values)
    ]


def user_values(
    scorer: Scorer,
    task: RankingTask,
    ks: Sequence[int] = (10, 50),
    metrics: Sequence[str] = ("recall", "ndcg", "mrr"),
    slices: Sequence[Slice] = (),
    item_ND: Array | None = None,
) -> list[tuple[Slice, dict[str, Array]]]:
    """What ``evaluate`` takes means of: each metric for each user. Arguments and errors are those of ``evaluate``.

    Returns:
        For each slice, by the metric's name such as "ndcg@10", the values of its users in the order of its rows,
        float64, (E,); of shape () for what is no mean over users.
    """
    check_metrics(metrics, ks)
    wanted = [(metric, k) for k in ks for metric in metrics]
    # Lists say little of slices that are many and small, and the table of each is kept to one line per model.
    fewer = [(metric, ks[0]) for metric in metrics if metric in METRICS]
    parts = [(part, fewer if part.of_label else wanted) for part in (*slices_of(task), *slices)]
    rankings = {
        name: top_k(scorer, task, max(ks), candidates_N=candidates_N)
        for name, candidates_N in {part.candidates: part.candidates_N for part, _ in parts}.items()
    }
    return [(part, _per_user(rankings[part.candidates], part, task, asked, item_ND)) for part, asked in parts if asked]


def fast_metrics(scorer: Scorer, task: RankingTask, metrics_wanted: Iterable[str]) -> dict[str, float]:
    """A few means without intervals, for validation during training: one ranking for all of them.

    Returns:
        By the names given, such as "ndcg@10", or "cold/ndcg@10" for the slice "cold_items". The cold ones are left out
        where no user has a cold relevant item.

    Raises:
        UserError: a name that is not of this form, or a task without users.
    """
    names = {name: _parsed(name) for name in metrics_wanted}
    slices = {part.name: part for part in slices_of(task)}
    if slices["all"].candidates == "cold":
        slices["cold_items"] = slices["all"]
    check_metrics([metric for _, metric, _ in names.values()], [k for *_, k in names.values()])
    top_EK = top_k(scorer, task, max(k for *_, k in names.values()))
    values = {}
    for name, (slice_name, metric, k) in names.items():
        if slice_name in slices:
            (values_E,) = _per_user(top_EK, slices[slice_name], task, [(metric, k)]).values()
            values[name] = float(values_E.mean())
    return values


def results_table(results: Sequence[Result]) -> Table:
    """Results to print: a table per split and slice, models as rows, metrics as columns.

    The best value of a column is bold, the oracle aside, where more is better (not so for novelty, say); where an
    oracle is among the models, a last line gives the best value as a share of the oracle's. Fits 100 columns (with
    more than six metrics, in several tables).
    """
    page = Table.grid(padding=(0, 0, 1, 0))
    page.add_column()
    for split, slice_name in dict.fromkeys((r.split, r.slice) for r in results):
        part = [r for r in results if (r.split, r.slice) == (split, slice_name)]
        names = list(dict.fromkeys(r.metric for r in part))
        for start in range(0, len(names), _COLUMNS):
            page.add_row(_slice_table(part, names[start : start + _COLUMNS]))
    return page


def write_results(
    path: str | Path,
    results: Sequence[Result],
    timing: Mapping[str, float],
    data: Mapping[str, Any],
    comparison: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write metrics.json whole or not at all; numbers keep every digit.

    ``timing`` is seconds by phase, ``data`` what the numbers were measured on. Where ``comparison`` (with another run)
    is empty, the file has no such entry.

    Raises:
        UserError: a number is not finite.
    """
    path = Path(path)
    report = {"results": [r.as_dict() for r in results], "timing": dict(timing), "data": dict(data)}
    if comparison:
        report["comparison"] = [dict(entry) for entry in comparison]
    try:
        text = json.dumps(report, indent=2, allow_nan=False, default=np.generic.item)
    except ValueError as error:
        raise UserError(f"{path} was not written: {error}. Every number in it must be finite.") from error
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_results(path: str | Path) -> Report:
    """Read what ``write_results`` wrote.

    Raises:
        UserError: the file is not of that form.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        results = [Result(**{f.name: entry[f.name] for f in fields(Result)}) for entry in report["results"]]
        return Report(results, report["timing"], report["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as results ({type(error).__name__}: {error}); it must be a JSON file with "
            "results, timing and data, as write_results writes it."
        ) from error


def _per_user(
    top_EK: Array,
    part: Slice,
    task: RankingTask,
    wanted: Sequence[tuple[str, int]],
    item_ND: Array | None = None,
) -> dict[str, Array]:
    """By name, each wanted metric for each of the slice's users."""
    top_EK = top_EK[part.rows]
    hits_EK = find_hits(top_EK, part.relevant, len(task.candidates_N))
    relevant_E = np.diff(part.relevant.starts)
    return {
        f"{metric}@{k}": METRICS[metric](hits_EK[:, :k], relevant_E)
        if metric in METRICS
        else LIST_METRICS[metric](top_EK[:, :k], part.candidates_N, task.popularity_N, item_ND)
        for metric, k in wanted
    }


def _results(model: str, task: RankingTask, part: Slice, values: Mapping[str, Array]) -> Iterator[Result]:
    """Means of a slice's values, with intervals where they are means."""
    means = {name: values_E for name, values_E in values.items() if values_E.ndim}
    low_J, high_J = bootstrap_intervals(np.stack([*means.values()], axis=1)) if means else ((), ())
    ends = dict(zip(means, zip(low_J, high_J, strict=True), strict=True))
    for name, values_E in values.items():
        value = float(values_E.mean())
        low, high = ends.get(name, (value, value))
        k = int(name.partition("@")[2])
        yield Result(
            model=model,
            split=task.split,
            slice=part.name,
            metric=name,
            value=value,
            low=float(low),
            high=float(high),
            users=len(part.rows),
            protocol=_protocol(task, part, k) | ({} if name in ends else {"interval": NO_INTERVAL}),
        )


def check_metrics(metrics: Any, ks: Any) -> None:
    """Refuse what cannot be measured.

    Raises:
        UserError: no list, nothing in it, an unknown metric, or a k that is no whole number from 1.
    """
    lists = not any(isinstance(given, str | int | float) for given in (metrics, ks))
    known = (
        lists
        and all(m in METRICS or m in LIST_METRICS for m in metrics)
        and all(isinstance(k, int) and k > 0 for k in ks)
    )
    if not (known and len(metrics) and len(ks)):
        names = ", ".join([*METRICS, *LIST_METRICS])
        raise UserError(
            f"metrics={metrics} at ks={ks} cannot be measured. Give one or more of {names}, and one or more "
            "whole numbers from 1: metrics=[ndcg,recall] ks=[10,50]."
        )


def _parsed(name: str) -> tuple[str, str, int]:
    """ "cold/ndcg@10" as slice, metric and k."""
    metric, _, k = name.removeprefix("cold/").partition("@")
    if not k.isdecimal():
        raise UserError(
            f"the metric name {name!r} cannot be read; write {' or '.join(f'{m}@10' for m in METRICS)}, "
            "with cold/ before it for the cold items."
        )
    return "cold_items" if name.startswith("cold/") else "all", metric, int(k)


def _protocol(task: RankingTask, part: Slice, k: int) -> dict[str, Any]:
    return {
        **task.protocol,
        "candidates": part.candidates,
        "candidate_items": int(part.candidates_N.sum()),
        "seen_filter": bool(task.seen_filter),
        "ties": "item index",
        "k": int(k),
        "interval": f"bootstrap over users, {SAMPLES} samples, {LEVEL:.0%}".replace("%", " %"),
    }


def best_values(part: Sequence[Result]) -> dict[str, float]:
    """By metric, the best value of a slice, the oracle aside; none where more is not better, as of lists as such."""
    best: dict[str, float] = {}
    for result in part:
        if result.model != ORACLE and result.metric.partition("@")[0] not in LIST_METRICS:
            best[result.metric] = max(result.value, best.get(result.metric, result.value))
    return best


def _slice_table(part: Sequence[Result], names: Sequence[str]) -> Table:
    found = {(r.model, r.metric): r for r in part}
    models = list(dict.fromkeys(r.model for r in part))
    best = best_values(part)
    table = Table(
        title=f"{part[0].split}: {part[0].slice}",
        title_justify="left",
        caption=_caption(next((r for r in part if r.protocol.get("interval") != NO_INTERVAL), part[0])),
        caption_justify="left",
    )
    table.add_column("model", max_width=18)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        cells = [_cell(found.get((model, name)), best.get(name)) for name in names]
        table.add_row(model, *cells)
    if ORACLE in models:
        table.add_section()
        shares = [_share(best.get(name), found.get((ORACLE, name))) for name in names]
        table.add_row("best / oracle", *shares)
    return table


def _cell(result: Result | None, best: float | None) -> Text:
    if result is None:
        return Text("-")
    bold = result.model != ORACLE and result.value == best
    ends = f"\n{result.low:.3f}-{result.high:.3f}"
    if result.protocol.get("interval") == NO_INTERVAL:
        ends = ""
    return Text.assemble((f"{result.value:.4f}", "bold" if bold else ""), (ends, "dim"))


def _share(best: float | None, oracle: Result | None) -> str:
    return f"{best / oracle.value:.1%}" if best is not None and oracle and oracle.value > 0 else "-"


def _caption(result: Result) -> str:
    told = {key: moment(v) if isinstance(v, float) else v for key, v in result.protocol.items()}
    settings = ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("k", "interval"))
    return f"{result.users:,} users; {settings}; below each value: {result.protocol.get('interval', 'interval')}"
