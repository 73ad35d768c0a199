"""Item embeddings on a plane: the first two principal components."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from avrec.batch import Array
from avrec.report.inputs import ReportInputs
from avrec.report.media import sheet

MOST_ITEMS = 800
MOST_GROUPS = 8
OTHER = "other"


@dataclass(frozen=True)
class Point:
    """An item on the map: ``x`` from the left and ``y`` from the top, 0 to 1."""

    x: float
    y: float
    title: str
    group: int
    cell: tuple[int, int, int, int] | None
    """Its part of the map's picture."""


@dataclass(frozen=True)
class ItemMap:
    """All points."""

    points: list[Point]
    groups: list[tuple[str, int]]
    """Their names, and how many items of each are shown."""
    coloured_by: str
    height: float
    """Of the plane, over its width."""
    share: float
    """Of the embeddings' variance that the plane holds."""
    items: int
    """In the catalogue."""
    picture: str
    """Data URI of the small pictures, in one."""


def item_map(inputs: ReportInputs) -> ItemMap | None:
    """The map; None where all embeddings coincide."""
    total = len(inputs.items)
    shown = np.sort(np.random.default_rng(0).permutation(total)[:MOST_ITEMS])
    plane_ND, share = _plane(inputs.item_ND[shown].detach().float().cpu())
    if not share:
        return None
    low, span = plane_ND.min(axis=0), np.ptp(plane_ND, axis=0)
    labels = _labels(inputs, shown)
    counts = Counter(labels)
    names = [name for name, _ in counts.most_common() if name != OTHER]
    groups = {name: number for number, name in enumerate([*names, *([OTHER] if OTHER in counts else [])])}
    pictures = sheet([inputs.items[item] for item in shown])
    points = [
        Point(round(float(x), 4), round(float(y), 4), inputs.title(item), groups[label], cell)
        for (x, y), item, label, cell in zip(
            (plane_ND - low) / np.where(span > 0, span, 1), shown.tolist(), labels, pictures.cells, strict=True
        )
    ]
    return ItemMap(
        points=points,
        groups=[(name, counts[name]) for name in groups],
        coloured_by=inputs.label_name or "training",
        height=float(span[1] / span[0]),
        share=share,
        items=total,
        picture=pictures.uri,
    )


def _plane(item_ND: torch.Tensor) -> tuple[Array, float]:
    """Coordinates on the first two principal components, and their share of the variance; 0 where it is none."""
    centred_ND = item_ND - item_ND.mean(dim=0)
    variance = float(centred_ND.square().sum())
    if min(item_ND.shape) < 2 or not np.isfinite(variance) or variance < 1e-12:
        return np.zeros((len(item_ND), 2)), 0.0
    # pca_lowrank draws: a seed of its own keeps the map the same, and the run's draws as they are.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, size_Q, direction_DQ = torch.pca_lowrank(centred_ND, q=min(6, *item_ND.shape), center=False)
    return (centred_ND @ direction_DQ[:, :2]).numpy(), float(size_Q[:2].square().sum()) / variance


def _labels(inputs: ReportInputs, shown: Array) -> list[str]:
    if not inputs.label_name:
        return ["cold: not in training" if inputs.task.cold_N[item] else "warm: in training" for item in shown]
    labels = [inputs.labels[item] or OTHER for item in shown]
    common = {name for name, _ in Counter(name for name in labels if name != OTHER).most_common(MOST_GROUPS)}
    return [name if name in common else OTHER for name in labels]
