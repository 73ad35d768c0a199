"""avrec.run.evaluation: which baselines stand beside a model, and what they know."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from avrec.errors import UserError
from avrec.evaluation import neighbours
from avrec.evaluation.baselines import RandomScorer
from avrec.evaluation.evaluator import evaluate
from avrec.run import build
from avrec.run.evaluation import Baselines, EvaluationSpec, more_slices, read_columns


@pytest.fixture
def run(compose_cfg: Any) -> Any:
    found = build.build_run(compose_cfg())
    found.data.prepare(found.module.item_tower)
    return found


def baselines_of(names: Any, run: Any) -> Baselines:
    return Baselines(names, run.data, run.source, run.untrained)


def test_baselines_know_what_the_histories_know(run: Any) -> None:
    data, task = run.data, run.data.tasks["test"]
    scorers = dict(baselines_of(Baselines.NAMES, run).scorers("test"))
    popularity = scorers["popularity"](np.arange(1))[0].numpy()
    np.testing.assert_array_equal(popularity, task.popularity_N)
    log, known = data.catalogue.log, data.split.role < 2
    late = np.quantile(log.time[known], 0.9)
    recent = np.bincount(log.item[known & (log.time >= late)], minlength=len(data.catalogue.items))
    np.testing.assert_array_equal(scorers["recent_popularity"](np.arange(1))[0].numpy(), recent)
    ease = neighbours.ease(scorers["ease"].history, len(data.catalogue.items))
    assert scorers["ease"].similarity_NN.shape == ease.shape
    user = int(task.user_index_E[0])
    assert scorers["ease"].history[0].tolist() == log.item[known & (log.user == user)].tolist()


def test_content_knn_reads_the_encoders_as_they_were_before_training(run: Any) -> None:
    before = dict(baselines_of(["content_knn"], run).scorers("test"))
    assert set(before) >= {"content_knn", "content_knn_text", "content_knn_vision", "content_knn_audio"}
    with torch.no_grad():
        for parameter in run.module.parameters():
            parameter.add_(1.0)
    after = dict(baselines_of(["content_knn"], run).scorers("test"))
    assert torch.equal(before["content_knn"].item_ND, after["content_knn"].item_ND)


def test_too_many_items_leave_out_what_needs_a_square_of_them(run: Any, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(neighbours, "MOST_ITEMS", 10)
    with caplog.at_level(logging.INFO):
        names = [name for name, _ in baselines_of(["ease", "item_knn", "random"], run).scorers("test")]
    assert "ease" not in names
    assert "random" in names
    assert "baseline ease is left out for 32 items" in caplog.text


def test_measuring_by_columns_candidates_and_time(run: Any) -> None:
    data = run.data
    task, log = data.tasks["test"], data.catalogue.log
    themes = data.catalogue.item_columns.columns
    regions = pl.DataFrame({"region": ["EU|UK", "US"] * (len(data.catalogue.items) // 2)})
    data.catalogue = replace(data.catalogue, item_columns=regions, user_columns=data.catalogue.user_columns)
    spec = EvaluationSpec("test", [10], ["ndcg", "diversity"], ["items.region"], {"region": ["UK"]})
    found = {part.name: part for part in more_slices(data, spec)}
    assert found["region=UK"].candidates_N.tolist() == [True, False] * (len(data.catalogue.items) // 2), themes
    assert {"items.region: EU", "items.region: UK", "items.region: US"} <= set(found)
    # Time since the split, against a loop over the log's rows.
    cut = task.protocol["test_from"]
    days = {name: part for name, part in found.items() if name.startswith("days_since_split")}
    assert days
    expected = set()
    for user, item in zip(*(values[data.split.role == 2] for values in (log.user, log.item)), strict=True):
        first = log.time[(log.user == user) & (log.item == item) & (data.split.role == 2)].min()
        if item in task.relevant[np.flatnonzero(task.user_index_E == user)[0]] if user in task.user_index_E else ():
            expected.add((int(user), int(item), (first - cut) / 86400))
    for name, part in days.items():
        low, _, high = name.partition(": ")[2].partition("-")
        wanted = {(user, item) for user, item, day in expected if int(low) <= day < float(high or "inf")}
        users = task.user_index_E[part.rows]
        assert {(int(u), int(i)) for place, u in enumerate(users) for i in part.relevant[place]} == wanted
    vectors_ND = baselines_of([], run).vectors_ND
    results = evaluate("random", RandomScorer(task, len(regions)), task, [10], spec.metrics, found.values(), vectors_ND)
    assert {r.metric for r in results if r.slice == "region=UK"} == {"ndcg@10", "diversity@10"}
    assert {r.protocol["candidate_items"] for r in results if r.slice == "region=UK"} == {len(regions) // 2}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"slices": ["items.nothing"]}, "evaluation.slices: there is no column items.nothing"),
        ({"slices": "items.theme"}, "slices must be a list of columns"),
        ({"candidates": {"region": "EU"}}, "evaluation.candidates: there is no column items.region"),
        ({"candidates": {"region": None}}, "needs one or more values of region; got region=None"),
    ],
)
def test_columns_that_are_not_there_are_refused(run: Any, asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_columns(run.data, EvaluationSpec.of({"ks": [10], "metrics": ["ndcg"], **asked}))


@pytest.mark.parametrize(("given", "left"), [(True, [1, 0]), ("true", [1, 0]), (1000001, [0, 1]), ("AC/DC", [1, 0])])
def test_candidates_of_any_kind_of_value(run: Any, given: Any, left: list[int]) -> None:
    half = len(run.data.catalogue.items) // 2
    columns = {"flag": [True, False], "id": [1000000, 1000001], "artist": ["AC/DC", "Blur: live"]}
    table = pl.DataFrame({name: values * half for name, values in columns.items()})
    run.data.catalogue = replace(run.data.catalogue, item_columns=table)
    name = "artist" if given == "AC/DC" else "id" if isinstance(given, int) and given > 1 else "flag"
    spec = EvaluationSpec("test", [10], ["ndcg"], [], {name: given})
    _, (part,) = read_columns(run.data, spec)
    assert part.candidates_N.tolist() == [bool(one) for one in left] * half
    assert part.group == ""
    with pytest.raises(UserError, match="Values: artist has AC, AC/DC, Blur: live, DC"):
        read_columns(run.data, spec._replace(candidates={"artist": "Abba"}))
    assert read_columns(run.data, spec._replace(candidates={"artist": "Blur: live"}))[1][0].group == ""


def test_histories_younger_than_the_target_say_nothing_of_the_time_since(run: Any, compose_cfg: Any) -> None:
    found = build.build_run(compose_cfg("split=random", "split.history=all"))
    found.data.prepare(found.module.item_tower)
    task, known = found.data.tasks["test"], found.data.known("test")
    users = np.repeat(task.user_index_E, np.diff(task.relevant.starts))
    last = [known.time[known.starts[u] : known.starts[u + 1]].max(initial=-np.inf) for u in users]
    later = sum(bool(np.isfinite(t) and when >= t) for t, when in zip(last, task.relevant_time, strict=True))
    parts = more_slices(found.data, EvaluationSpec("test", [10], ["ndcg"], [], {}))
    measured = sum(len(p.relevant.values) for p in parts if p.name.startswith("days_since_last"))
    assert measured <= later < len(users)


def test_diversity_without_content_is_refused_before_training(compose_cfg: Any) -> None:
    cfg = compose_cfg("evaluation.metrics=[ndcg,diversity]")
    cfg.text = cfg.vision = cfg.audio = None
    with pytest.raises(UserError, match="diversity needs an encoder that reads content"):
        build.build_run(cfg)
