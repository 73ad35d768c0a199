"""avrec.training.monitoring.EpochLine: what a run logs per epoch is kept."""

import json
from types import SimpleNamespace

import torch

from avrec.training.monitoring import EpochLine


def _validated(line: EpochLine, epoch: int, **metrics: float) -> None:
    values = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        callback_metrics=values,
        current_epoch=epoch,
        max_epochs=9,
        global_step=epoch * 10,
    )
    line.on_validation_end(trainer, None)


def test_a_resumed_runs_curve_is_whole(tmp_path):
    first = EpochLine(tmp_path / "first")
    _validated(first, 0, train__loss=2.0, val__ndcg=0.25, train__items_per_s=9.0)
    second = EpochLine(tmp_path / "second")
    second.load_state_dict(first.state_dict())
    _validated(second, 1, train__loss=1.0, val__ndcg=0.5)
    assert json.loads((tmp_path / "second" / "curves.json").read_text()) == [
        {"epoch": 1, "step": 0, "train/loss": 2.0, "val/ndcg": 0.25},
        {"epoch": 2, "step": 10, "train/loss": 1.0, "val/ndcg": 0.5},
    ]
    assert len(first.curve) == 1


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _validated(EpochLine(), 0, val__ndcg=0.25)
    assert not list(tmp_path.iterdir())
