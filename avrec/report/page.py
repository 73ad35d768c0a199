"""The report as one self-contained HTML file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from avrec.evaluation.results import MODEL, NO_INTERVAL, ORACLE, Kind, Result, best_values, of_kind
from avrec.io import atomic_write, moment
from avrec.report.data import ReportData
from avrec.report.gallery import KINDS
from avrec.report.item_map import ItemMap
from avrec.report.text import HEALTH, POPULARITY, SLICES, main_metric, metric_name, model_name, slice_name

MAP_WIDTH = 1000
MAP_EDGE = 24
MOVING = ("health/item_drift", "health/item_effective_rank")
CHART = (340, 190)
CHART_EDGES = (44, 14, 12, 26)
"""Left, right, top, bottom."""


class Cell(NamedTuple):
    """A number of the table."""

    value: str
    interval: str
    best: bool


class Bar(NamedTuple):
    """One of a panel's bars: a number, and another that is marked beside it."""

    name: str
    own: Result
    mark: Result | None


class Panel(NamedTuple):
    """Bars that may be compared; ``unit`` is how many percent of the width make 1, ``users`` 0 where they differ."""

    title: str
    meaning: str
    bars: list[Bar]
    unit: float
    users: int


class Chart(NamedTuple):
    """A learning curve as SVG; ``dots`` are x, y and text, ``y_ticks`` y and text."""

    name: str
    dots: list[tuple[float, float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best: tuple[float, float, str] | None


def render(report: ReportData) -> str:
    """The page."""
    # Titles and ids are untrusted: everything is escaped.
    environment = Environment(
        loader=PackageLoader("avrec.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run = report.inputs
    return environment.get_template("template.html").render(
        report=report,
        run=run,
        tables=tables(run.results),
        charts=charts(run.curve),
        slices=slice_panels(run.results),
        hidden=hidden_panels(run.results),
        shares=[(r.modality, 100 * r.value) for r in of_kind(run.results, "variance_share")],
        health=health_rows(run.health),
        metric_name=metric_name,
        kinds=KINDS,
        map=None if report.map is None else _map_view(report.map),
        chart_size=CHART,
        data={"points": _points(report.map), "sounds": report.sounds},
    )


def write(report: ReportData, path: Path) -> None:
    """Write the page whole or not at all."""
    with atomic_write(path) as file:
        file.write(render(report))


# ---------------------------------------------------------------------------------------------------------
# Tables and bars


def tables(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A table per main slice: models as rows, metrics as columns."""
    found, main = [], of_kind(results, "main")
    for name in dict.fromkeys(r.slice for r in main):
        part = [r for r in main if r.slice == name]
        title, meaning = SLICES.get(name, (name, ""))
        # A phone shows two columns; the first is what the headline is about.
        metrics = list(dict.fromkeys([main_metric(results), *(r.metric for r in part)]))
        models = list(dict.fromkeys(r.model for r in part))
        models = [*(m for m in models if m != ORACLE), *(m for m in models if m == ORACLE)]
        by_name, best = {(r.model, r.metric): r for r in part}, best_values(part)
        rows = [
            {
                "name": model_name(model),
                "kind": {MODEL: "model", ORACLE: "oracle"}.get(model, ""),
                "cells": [_cell(by_name.get((model, metric)), best.get(metric)) for metric in metrics],
            }
            for model in models
        ]
        found.append(
            {
                "key": name,
                "title": title,
                "meaning": meaning,
                "metrics": [metric_name(m) for m in metrics],
                "rows": rows,
                "protocol": _protocol(part[0]),
            }
        )
    return found


def _cell(result: Result | None, best: float | None) -> Cell | None:
    if result is None:
        return None
    is_best = result.model != ORACLE and result.value == best
    ends = "" if result.protocol.get("interval") == NO_INTERVAL else f"{result.low:.3f} – {result.high:.3f}"
    return Cell(f"{result.value:.4f}", ends, is_best)


def _protocol(result: Result) -> str:
    settings = [f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in result.protocol.items() if key != "k"]
    return f"{result.users:,} {result.split} users; " + "; ".join(settings)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return moment(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def slice_panels(results: Sequence[Result]) -> list[Panel]:
    """The model by slice, a panel per group of slices; popularity is marked."""
    results = of_kind(results, "main", "slice")
    metric = main_metric(of_kind(results, "slice") or results) if results else ""
    found = {(r.slice, r.model): r for r in results if r.metric == metric}
    whole = [(r.users, r.value) for key, r in found.items() if key == ("all", MODEL)]
    return _panels(
        (*slice_name(own), own, found.get((name, POPULARITY)))
        for (name, model), own in found.items()
        # A group with all users in one slice repeats the whole.
        if model == MODEL and not (own.group and (own.users, own.value) in whole)
    )


def hidden_panels(results: Sequence[Result]) -> list[tuple[str, str, list[Panel]]]:
    """By slice: its title and meaning, and the model without each modality and with each alone.

    The model with all modalities is marked.
    """
    hidden = of_kind(results, "without", "alone")
    metric = main_metric(hidden) if hidden else ""
    found = []
    for name in dict.fromkeys(r.slice for r in hidden):
        part = [r for r in results if (r.slice, r.metric) == (name, metric)]
        whole = [r for r in of_kind(part, "main") if r.model == MODEL]
        mark = whole[0] if whole else None
        rows: list[tuple[str, str, str, Result, Result | None]] = []
        kinds: tuple[tuple[str, Kind, str], ...] = (
            ("One modality hidden", "without", "without {}"),
            ("One modality alone", "alone", "{} alone"),
        )
        for title, kind, label in kinds:
            rows += [(title, "", "all modalities", own, own) for own in whole]
            rows += [(title, "", label.format(r.modality), r, mark) for r in of_kind(part, kind)]
        panels = _panels(rows)
        unit = min(panel.unit for panel in panels)
        found.append((*SLICES.get(name, (name, "")), [panel._replace(unit=unit) for panel in panels]))
    return found


def _panels(rows: Iterable[tuple[str, str, str, Result, Result | None]]) -> list[Panel]:
    """Panels of bars, from title and meaning, the bar's name, its result and the marked one."""
    panels: dict[tuple[str, str], list[Bar]] = {}
    for title, meaning, name, own, mark in rows:
        panels.setdefault((title, meaning), []).append(Bar(name, own, mark))
    found = []
    for key, bars in panels.items():
        longest = max(max(own.high, mark.value if mark else 0.0) for _, own, mark in bars) or 1.0
        users = {bar.own.users for bar in bars}
        found.append(Panel(*key, bars, 100 / longest, users.pop() if len(users) == 1 else 0))
    return found


def _number(value: float) -> str:
    return (f"{value:#.3g}" if abs(value) < 1000 else f"{value:,.0f}").replace("-", "−")


def health_rows(health: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, meaning and value of each number."""
    return [
        (*HEALTH.get(name, (name.replace("_", " "), "")), _number(value) if isinstance(value, float) else _plain(value))
        for name, value in health.items()
        if name != "warnings"
    ]


# ---------------------------------------------------------------------------------------------------------
# Learning curves


def charts(curve: Sequence[Mapping[str, float]], most: int = 4) -> list[Chart]:
    """The training loss, the validation metrics, and the health numbers in ``MOVING``."""
    names = list(dict.fromkeys(name for entry in curve for name in entry))
    wanted = [n for n in names if n == "train/loss"] + [n for n in names if n.startswith("val/")]
    found = []
    for name in [*wanted[:most], *(n for n in names if n in MOVING)]:
        points = [(e["epoch"], e[name]) for e in curve if name in e and math.isfinite(e[name])]
        if points:
            found.append(_chart(name, points))
    return found


def _chart(name: str, points: list[tuple[float, float]]) -> Chart:
    left, right, top, bottom = CHART_EDGES
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    ticks = _ticks(min(values), max(values))
    digits = max(len(f"{v:.9f}".rstrip("0").partition(".")[2]) for v in ticks)
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def x_of(epoch: float) -> float:
        share = (epoch - epochs[0]) / (epochs[-1] - epochs[0]) if epochs[-1] > epochs[0] else 0.5
        return round(left + share * (CHART[0] - left - right), 1)

    def y_of(value: float) -> float:
        return round(top + (high - value) / (high - low) * (CHART[1] - top - bottom), 1)

    dots = [(x_of(e), y_of(v), f"epoch {e:.0f}: {v:.4f}") for e, v in points]
    step = max(1, math.ceil(len(points) / 7))
    validated = name.startswith("val/")
    best = dots[values.index(max(values))] if validated else None
    plain = f"validation {metric_name(name.removeprefix('val/'))}" if validated else "training loss"
    return Chart(
        name=HEALTH.get(name.removeprefix("health/"), (plain,))[0],
        dots=dots,
        x_ticks=[(x_of(e), f"{e:.0f}") for e in epochs[::step]],
        y_ticks=[(y_of(v), f"{v:.{digits}f}" if digits < 6 and high < 1e5 else f"{v:g}") for v in ticks],
        best=best,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from at most ``low`` to at least near ``high``."""
    span = high - low or abs(high) or 1.0
    high = low + span
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 4)
    return [float(f"{step * n:.10g}") for n in range(math.floor(low / step), math.ceil(high / step) + 1)]


# ---------------------------------------------------------------------------------------------------------
# The map


def _map_view(drawn: ItemMap) -> dict[str, Any]:
    """What the template draws of the map: the dots by group."""
    points = _points(drawn)
    return {
        "width": MAP_WIDTH,
        "height": _map_height(drawn),
        "dots": [[(x, y) for x, y, _, group, _ in points if group == number] for number in range(len(drawn.groups))],
        "groups": drawn.groups,
        "coloured_by": drawn.coloured_by,
        "share": f"{100 * drawn.share:.0f} %",
        "shown": len(drawn.points),
        "total": drawn.items,
        "picture": drawn.picture,
    }


def _points(drawn: ItemMap | None) -> list[list[Any]]:
    """x, y, title, group, cell."""
    if drawn is None:
        return []
    inner_x, inner_y = MAP_WIDTH - 2 * MAP_EDGE, _map_height(drawn) - 2 * MAP_EDGE
    return [
        [round(MAP_EDGE + p.x * inner_x, 1), round(MAP_EDGE + p.y * inner_y, 1), p.title, p.group, p.cell]
        for p in drawn.points
    ]


def _map_height(drawn: ItemMap) -> int:
    return round(max(0.45, min(drawn.height, 1.0)) * MAP_WIDTH)
