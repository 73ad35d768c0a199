"""docs/evaluation.md names the fields, metrics and health numbers that there are."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from avrec.evaluation import health
from avrec.evaluation.baselines import RandomScorer
from avrec.evaluation.comparison import Comparison
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.list_metrics import LIST_METRICS
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.results import Result

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()


def first_column(text: str) -> set[str]:
    """The names in backticks in the first column of a part's tables."""
    return {name for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for name in re.findall(r"`([^`]*)`", row)}


def part(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_metrics() -> None:
    assert first_column(part("Metrics")) == {*METRICS, *LIST_METRICS}


def test_results_and_comparisons(make_task) -> None:
    results, _, comparisons = part("evaluation.json").partition("A comparison:")
    assert first_column(results) == {field.name for field in fields(Result)}
    assert first_column(comparisons) == {field.name for field in fields(Comparison)} | {"sentence"}
    protocol = re.search(r"\| `protocol` \| (.*) \|", results)
    task = make_task([[0]] * 6, 3, protocol={"split": "temporal", "leaks": "nothing"})
    (result,) = evaluate("random", RandomScorer(task, 3), task, (2,), ("ndcg",))
    assert protocol
    assert set(re.findall(r"`([^`]*)`", protocol.group(1))) == set(result.protocol)


def test_health(make_task) -> None:
    task = make_task([[0], [1]], 3)
    query_ED, item_ND = torch.randn(2, 4), torch.randn(3, 4)
    pairs = np.arange(2), np.arange(2)
    found = {"temperature": 0.1, **health.health_of(query_ED, item_ND, *pairs), **health.drift(item_ND, item_ND)}
    found |= health.popularity_bias(query_ED, item_ND, task) | health.calibration(query_ED, item_ND, 0.0, task)
    assert first_column(part("Health")) == set(found)
