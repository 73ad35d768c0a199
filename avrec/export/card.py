"""The model card: README.md with the front matter that the Hub reads, and what a stranger should know."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avrec.io import moment

LOAD = {
    "item": """import avrec

tower = avrec.load_item_tower("FOLDER")
vectors = tower.embed([{"title": "A new upload", "image": "poster.jpg"}])  # float32 (n, D)""",
    "user": """import avrec

tower = avrec.load_user_tower("FOLDER", items="RUN/embeddings/items.parquet")
queries = tower.query([["item_1", "item_7"]], times=[[1700000000, 1700003600]])  # float32 (B, D)""",
}
SCORE = {
    "item": "The product of a query of the run's user tower with an item embedding is the score, up to a constant.",
    "user": "The product of a query with an item embedding of the same run, plus `bias` of config.json, is the score.",
}


@dataclass(frozen=True)
class About:
    """What a card tells of the run.

    Attributes:
        counts: of the catalogue: items, users, interactions, present (items by modality), cold_items.
        results: of metrics.json, as mappings; the model's own are shown.
        measured: test metrics of what was exported, by variant, then by name.
        differences: largest absolute difference from the tower, by file.
        limits: sentences.
    """

    counts: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    differences: Mapping[str, float] = field(default_factory=dict)
    limits: Sequence[str] = ()


def write_card(folder: Path, about: About = About()) -> None:  # noqa: B008
    """Write README.md beside an export's config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = "item" if "encoders" in config else "user"
    own = [r for r in about.results if r["model"] == "avrec" and r["slice"] in ("all", "cold_items", "cold_candidates")]
    names = list(dict.fromkeys(r["metric"].partition("@")[0] for r in own)) or ["recall", "ndcg"]
    tags = ["recommendation", "retrieval", "two-tower", *config.get("encoders", {})]
    parts = [
        "\n".join(
            [
                "---",
                "# license: say which, before you publish",
                "library_name: avrec",
                "tags:",
                *(f"- {tag}" for tag in tags),
                "metrics:",
                *(f"- {name}" for name in names),
                "---",
            ]
        ),
        f"# avrec {kind} tower",
        f"The {kind} tower of a two-tower retrieval model, {config['dim']} dimensions. {SCORE[kind]}",
        f"## How to load\n\n```python\n{LOAD[kind]}\n```",
    ]
    if about.counts:
        parts.append("## Data\n\n" + _table(("what", "count"), _counts(about.counts)))
    if own:
        rows: list[tuple[str, ...]] = [
            (r["slice"], r["metric"], f"{r['value']:.4f}", f"{r['low']:.4f} to {r['high']:.4f}", f"{r['users']:,}")
            for r in own
        ]
        told = {key: moment(v) if isinstance(v, float) else v for key, v in own[0]["protocol"].items()}
        protocol = ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("k", "leaks"))
        parts.append(
            f"## Metrics\n\nOf the whole model on its {own[0]['split']} split ({protocol}):\n\n"
            + _table(("slice", "metric", "value", "interval", "users"), rows)
        )
    if about.measured:
        metrics = list(next(iter(about.measured.values())))
        rows = [(name, *(f"{values[metric]:.4f}" for metric in metrics)) for name, values in about.measured.items()]
        parts.append("## What was exported, on the test split\n\n" + _table(("variant", *metrics), rows))
    if about.differences:
        rows = [(name, f"{value:.2g}") for name, value in about.differences.items()]
        parts.append(
            "## Largest difference from the tower\n\nOn random inputs:\n\n" + _table(("file", "difference"), rows)
        )
    if about.limits:
        parts.append("## Limits\n\n" + "\n".join(f"- {limit}" for limit in about.limits))
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _counts(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat = {**counts, **{f"items with {name}": value for name, value in counts.get("present", {}).items()}}
    return [(name.replace("_", " "), f"{value:,}") for name, value in flat.items() if isinstance(value, int)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
