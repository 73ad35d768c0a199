"""From facts to one HTML file that needs nothing else."""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from avrec.evaluation.protocol import ORACLE, Result
from avrec.report.facts import Facts
from avrec.report.item_map import ItemMap
from avrec.report.people import KINDS
from avrec.report.words import MODEL, POPULARITY, SLICES, main_metric, metric_name, model_name, of_slice

MAP_WIDTH = 1000
MAP_EDGE = 24
CHART = (340, 190)
CHART_EDGES = (44, 14, 12, 26)
"""Left, right, top, bottom."""


class Cell(NamedTuple):
    """A number of the table."""

    value: str
    interval: str
    best: bool


class Chart(NamedTuple):
    """A learning curve as SVG; ``dots`` are x, y and text, ``y_ticks`` y and text."""

    name: str
    path: str
    dots: list[tuple[float, float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    best: tuple[float, float, str] | None


def render(facts: Facts) -> str:
    """The page."""
    # Everything that is written into it is escaped: titles and ids are somebody else's.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("avrec.report").joinpath("template.html").read_text(encoding="utf-8"))
    return template.render(
        facts=facts,
        tables=tables(facts.results),
        charts=charts(facts.curve),
        bars=bars(facts.results),
        metric=metric_name(main_metric(facts.results)) if facts.results else "",
        kinds=KINDS,
        map=None if facts.map is None else _map_view(facts.map),
        chart_size=CHART,
        data={"points": _points(facts.map), "sounds": facts.sounds},
    )


def write(facts: Facts, path: Path) -> None:
    """Write the page whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A lone surrogate in a title cannot be written.
        unfinished.write_text(render(facts), encoding="utf-8", errors="replace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------
# Tables and bars


def tables(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A table per slice that is none of many: models as rows, metrics as columns."""
    found = []
    for name in dict.fromkeys(r.slice for r in results if not r.of_label):
        part = [r for r in results if r.slice == name]
        title, meaning = SLICES.get(name, (name, ""))
        # A phone shows two columns; the first is what the headline is about.
        metrics = list(dict.fromkeys([main_metric(results), *(r.metric for r in part)]))
        models = list(dict.fromkeys(r.model for r in part))
        models = [*(m for m in models if m != ORACLE), *(m for m in models if m == ORACLE)]
        by_name = {(r.model, r.metric): r for r in part}
        rows = [
            {
                "name": model_name(model),
                "kind": {MODEL: "model", ORACLE: "oracle"}.get(model, ""),
                "cells": [_cell(by_name.get((model, metric)), part) for metric in metrics],
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


def _cell(result: Result | None, part: Sequence[Result]) -> Cell | None:
    if result is None:
        return None
    best = max((r.value for r in part if r.metric == result.metric and r.model != ORACLE), default=None)
    is_best = result.model != ORACLE and result.value == best
    return Cell(f"{result.value:.4f}", f"{result.low:.3f} – {result.high:.3f}", is_best)


def _protocol(result: Result) -> str:
    settings = [f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in result.protocol.items() if key != "k"]
    return f"{result.users:,} {result.split} users; " + "; ".join(settings)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 1e8 < value < 1e10:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{value:,}" if isinstance(value, int) else str(value)


def bars(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The main metric by slice, of the model and of popularity: lengths in percent."""
    slices = list(dict.fromkeys(r.slice for r in results))
    pairs = {name: [of_slice(results, name).get(model) for model in (MODEL, POPULARITY)] for name in slices}
    longest = max((r.high for pair in pairs.values() for r in pair if r), default=0.0) or 1.0
    return [
        {
            "title": SLICES.get(name, (name, ""))[0],
            "users": next((r.users for r in pair if r), 0),
            "rows": [
                {
                    "name": model_name(r.model),
                    "kind": "model" if r.model == MODEL else "",
                    "value": f"{r.value:.3f}",
                    "length": round(100 * r.value / longest, 2),
                    "low": round(100 * r.low / longest, 2),
                    "spread": round(100 * (r.high - r.low) / longest, 2),
                }
                for r in pair
                if r
            ],
        }
        for name, pair in pairs.items()
    ]


# ---------------------------------------------------------------------------------------------------------
# Learning curves


def charts(curve: Sequence[Mapping[str, float]], most: int = 4) -> list[Chart]:
    """The training loss and what validation measured."""
    names = list(dict.fromkeys(name for entry in curve for name in entry))
    wanted = [n for n in names if n == "train/loss"] + [n for n in names if n.startswith("val/")]
    found = []
    for name in wanted[:most]:
        points = [(e["epoch"], e[name]) for e in curve if name in e and math.isfinite(e[name])]
        if points:
            found.append(_chart(name, points))
    return found


def _chart(name: str, points: list[tuple[float, float]]) -> Chart:
    left, right, top, bottom = CHART_EDGES
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    ticks = _ticks(min(values), max(values))
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
    kind = metric_name(name.removeprefix("val/")) if validated else "loss"
    return Chart(
        name=f"{'validation' if validated else 'training'} {kind}",
        path="M" + "L".join(f"{x} {y}" for x, y, _ in dots),
        dots=dots,
        x_ticks=[(x_of(e), f"{e:.0f}") for e in epochs[::step]],
        y_ticks=[(y_of(v), f"{v:g}") for v in ticks],
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
    """One path of round dots per group, so that a dot keeps its size on every screen."""
    dots: list[list[str]] = [[] for _ in drawn.groups]
    for x, y, _, group, _ in _points(drawn):
        dots[group].append(f"M{x} {y}h0")
    return {
        "width": MAP_WIDTH,
        "height": _map_height(drawn),
        "paths": ["".join(group) for group in dots],
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
