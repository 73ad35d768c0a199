"""Results: one number each with all that is needed to read it; their file, and their table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from avrec.errors import UserError
from avrec.evaluation.list_metrics import LIST_METRICS
from avrec.io import atomic_write, moment

MODEL = "avrec"
ORACLE = "oracle"
NO_INTERVAL = "none: one number over all users"
_COLUMNS = 6

Kind = Literal["main", "slice", "without", "alone", "variance_share"]
"""A whole ranking, or a slice of candidates · a slice by label · the model without a modality · with that one alone ·
the share of the scores' variance that a modality carries."""


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
        kind: one of ``Kind``.
        group: of kind "slice", what the slice is one of: "history_length", or a column such as "items.genre".
        label: of kind "slice", its label in the group, such as "51-".
        modality: of the last three kinds, the modality that is hidden, alone or weighed.
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
    kind: Kind = "main"
    group: str = ""
    label: str = ""
    modality: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As it stands in metrics.json: fields that do not apply are left out."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def of_kind(results: Iterable[Result], *kinds: Kind) -> list[Result]:
    """The results of these kinds, in their order."""
    return [result for result in results if result.kind in kinds]


class Report(NamedTuple):
    """What a metrics.json holds."""

    results: list[Result]
    timing: dict[str, float]
    data: dict[str, Any]


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
    """Read what this or an earlier version's ``write_results`` wrote.

    Raises:
        UserError: the file is not of that form.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        return Report([_read(entry) for entry in report["results"]], report["timing"], report["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} must be a JSON file with results, timing and data, as write_results writes it; it cannot be read "
            f"as results ({type(error).__name__}: {error})."
        ) from error


def _read(entry: dict[str, Any]) -> Result:
    if "kind" not in entry:
        entry = {**entry, **_named(entry["model"], entry["slice"], entry["metric"])}
    return Result(**{f.name: entry[f.name] for f in fields(Result) if f.default is MISSING or f.name in entry})


def _named(model: str, slice_name: str, metric: str) -> dict[str, str]:
    """What files of earlier versions tell by names alone."""
    if metric.startswith("score_variance/"):
        return {"kind": "variance_share", "modality": metric.removeprefix("score_variance/")}
    if model.startswith("avrec without "):
        return {"kind": "without", "modality": model.removeprefix("avrec without ")}
    if model.startswith("avrec, "):
        return {"kind": "alone", "modality": model.removeprefix("avrec, ").removesuffix(" alone")}
    group, colon, label = slice_name.partition(": ")
    return {"kind": "slice", "group": group, "label": label} if colon else {"kind": "main"}


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
