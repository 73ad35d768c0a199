"""avrec.measuring: which baselines stand beside a model, and what they know."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from avrec import pipeline
from avrec.evaluation import neighbours
from avrec.measuring import Baselines


@pytest.fixture
def run(compose_cfg: Any) -> Any:
    found = pipeline.build(compose_cfg())
    found.data.prepare_data()
    return found


def test_baselines_know_what_the_histories_know(run: Any) -> None:
    data, task = run.data, run.data.tasks["test"]
    scorers = dict(Baselines(Baselines.NAMES, run).scorers("test"))
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
    before = dict(Baselines(["content_knn"], run).scorers("test"))
    assert set(before) >= {"content_knn", "content_knn_text", "content_knn_vision", "content_knn_audio"}
    with torch.no_grad():
        for parameter in run.module.parameters():
            parameter.add_(1.0)
    after = dict(Baselines(["content_knn"], run).scorers("test"))
    assert torch.equal(before["content_knn"].item_ND, after["content_knn"].item_ND)


def test_too_many_items_leave_out_what_needs_a_square_of_them(run: Any, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(neighbours, "MOST_ITEMS", 10)
    with caplog.at_level(logging.INFO):
        names = [name for name, _ in Baselines(["ease", "item_knn", "random"], run).scorers("test")]
    assert "ease" not in names
    assert "random" in names
    assert "baseline ease is left out for 32 items" in caplog.text
