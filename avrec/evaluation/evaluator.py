"""The evaluation protocol: rank the catalogue for every user of a task, and measure each slice with its interval."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError
from avrec.evaluation.list_metrics import LIST_METRICS
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import Scorer, find_hits, top_k
from avrec.evaluation.results import NO_INTERVAL, Result
from avrec.evaluation.significance import LEVEL, SAMPLES, bootstrap_intervals
from avrec.evaluation.slices import Slice, slices_of
from avrec.ranking_task import RankingTask


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
        model: its name in the results.
        scorer: of the model or a baseline.
        task: users, candidates and held-out items.
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
    """Each metric for each user, of which ``evaluate`` takes the means. Arguments and errors are those of ``evaluate``.

    Returns:
        For each slice, by the metric's name such as "ndcg@10", the values of its users in the order of its rows,
        float64, (E,); of shape () for what is no mean over users.
    """
    check_metrics(metrics, ks)
    wanted = [(metric, k) for k in ks for metric in metrics]
    # Labelled slices are many and small: one row per model.
    fewer = [(metric, ks[0]) for metric in metrics if metric in METRICS]
    parts = [(part, fewer if part.group else wanted) for part in (*slices_of(task), *slices)]
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


def check_metrics(metrics: Any, ks: Any) -> None:
    """Check lists of metrics and ks.

    Raises:
        UserError: no list, an empty one, an unknown metric, or a k that is no whole number from 1.
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
            f"metrics must be a list of {names}, and ks a list of whole numbers from 1; got metrics={metrics} ks={ks}. "
            "Example: metrics=[ndcg,recall] ks=[10,50]."
        )


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
            kind="slice" if part.group else "main",
            group=part.group,
            label=part.label,
        )


def _parsed(name: str) -> tuple[str, str, int]:
    """ "cold/ndcg@10" as slice, metric and k."""
    metric, _, k = name.removeprefix("cold/").partition("@")
    if not k.isdecimal():
        raise UserError(
            f"A metric name must be METRIC@K or cold/METRIC@K, such as {', '.join(f'{m}@10' for m in METRICS)}; "
            f"got {name!r}."
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
