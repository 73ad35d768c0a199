"""What trackers get, and what nobody gets. Covers avrec.run.tracking."""

import csv
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import polars as pl
import pytest
import yaml
from omegaconf import OmegaConf

from avrec.errors import UserError
from avrec.evaluation.results import Result
from avrec.run import tracking
from avrec.run.config import CONF, plain
from train import train

PERSON, SECRET = "person-of-interest", "recognisable-secret"
LOGGERS = ["wandb", "csv", "tensorboard", *(["mlflow"] if importlib.util.find_spec("mlflow") else [])]


@pytest.fixture(scope="module")
def tracked(compose_cfg: Any, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all trackers, of a catalogue whose users and whose config's secret can be told by their names."""
    root = tmp_path_factory.mktemp("people") / "catalogue"
    shutil.copytree(demo_root, root)
    for name in ("interactions.csv", "users.csv"):
        (root / name).write_text((root / name).read_text().replace("user-", PERSON))
    assert PERSON in (root / "interactions.csv").read_text()
    run = tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRET.ljust(40, "0"))
        cfg = compose_cfg(
            *(f"logger=[{','.join(LOGGERS)}]", "report=true", "evaluation.baselines=[]"),
            f"+data_token={SECRET}",
            f"+logger.wandb.notes='https://me:{SECRET}@host'",
            run_dir=run,
        )
        cfg.data = OmegaConf.load(CONF / "data" / "folder.yaml")
        cfg.data.root = str(root)
        cfg.vision = cfg.audio = None
        train(cfg)
    return run


def test_no_user_and_no_secret_is_in_the_run_folder(tracked: Path) -> None:
    files = [path for path in tracked.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".ckpt", ".wandb", ".html", ".parquet", ".csv", ".yaml"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".parquet":  # compressed
            content = str(pl.read_parquet(path).to_dict(as_series=False)).encode()
        for word in (PERSON, SECRET):
            assert word.encode() not in content, path
    assert "data_token: '***'" in (tracked / "config.yaml").read_text()


def test_users_are_told_apart_by_their_numbers(tracked: Path) -> None:
    users = pl.read_parquet(tracked / "embeddings" / "users.parquet")
    assert users["user"].n_unique() == len(users)
    assert users["user"].is_between(0, 23).all()
    assert re.search(r"<b>User \d+</b>", (tracked / "report.html").read_text())


def test_curves_have_stable_names_and_the_final_numbers(tracked: Path) -> None:
    with (tracked / "csv" / "version_0" / "metrics.csv").open() as file:
        names = set(csv.DictReader(file).fieldnames or [])
    assert names >= {"train/loss", "train/items_per_s", "train/users_per_s", "val/ndcg@10", "lr/tower", "lr/encoder"}
    assert names >= {"memory/peak_gib", "health/temperature", "test/ndcg@10"}
    logged = yaml.safe_load((tracked / "csv" / "version_0" / "hparams.yaml").read_text())
    assert logged["optimizer"]["lr"] == 5e-3
    assert set(logged["code"]) == {"avrec", "commit", "python", "torch"}
    assert logged["catalogue"]["items"] == 32
    assert re.fullmatch("[0-9a-f]{16}", logged["catalogue"]["fingerprint"])


def test_wandb_keeps_nothing_but_what_it_is_told(tracked: Path) -> None:
    (run,) = (tracked / "wandb").glob("offline-run-*")
    assert {path.name for path in (run / "files").iterdir()} <= {"requirements.txt", "media"}
    assert list((run / "files" / "media").rglob("results*.json"))
    read = json.loads((run / "catalogue.json").read_text())
    assert read["items"] == 32
    assert f"catalogue-{read['fingerprint']}".encode() in next(run.glob("*.wandb")).read_bytes()


class MLFlowLogger(MagicMock):
    """Stands in for Lightning's, which is told by its name."""


def sent(run_dir: Path, most_mib: float) -> Any:
    logger = MLFlowLogger()
    logger.run_id = "1"
    results = [Result("avrec", "test", "all", "ndcg@10", 0.5, 0.4, 0.6, 9, {})]
    trainer: Any = SimpleNamespace(loggers=[logger])
    tracking.send(trainer, run_dir, results, {"ndcg@10": 0.5}, "abc", most_mib)
    return logger


def test_files_are_sent_up_to_a_size(tmp_path: Path) -> None:
    for name in ("checkpoints/best.ckpt", "item_tower/model.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(bytes(2**20))
    logger = sent(tmp_path, 1)
    logger.log_metrics.assert_called_once_with({"test/ndcg@10": 0.5})
    logger.experiment.log_artifact.assert_called_once_with("1", str(tmp_path / "checkpoints/best.ckpt"), "checkpoint")
    logger.experiment.log_artifacts.assert_called_once_with("1", str(tmp_path / "item_tower"), "item_tower")
    logger.experiment.set_tag.assert_any_call("1", "avrec.catalogue", "abc")
    (tmp_path / "item_tower" / "more").write_bytes(b"x")
    assert not sent(tmp_path, 1).experiment.log_artifacts.called
    assert not sent(tmp_path, 0).experiment.log_artifact.called


@pytest.mark.parametrize("offline", [True, False])
def test_wandb_is_told_what_a_run_reads_and_that_it_failed(tmp_path: Path, offline: bool) -> None:
    logger = type("WandbLogger", (MagicMock,), {})()
    run = logger.experiment
    run.dir, run.offline = str(tmp_path / "files"), offline
    trainer: Any = SimpleNamespace(loggers=[logger])
    with pytest.raises(ZeroDivisionError), tracking.tracked(trainer, {}, {"fingerprint": "abc", "items": 3}):
        raise ZeroDivisionError
    artifact = (run.log_artifact if offline else run.use_artifact).call_args.args[0]
    assert (artifact.type, artifact.name, artifact.metadata["items"]) == ("dataset", "catalogue-abc", 3)
    assert json.loads((tmp_path / "catalogue.json").read_text()) == {"fingerprint": "abc", "items": 3}
    assert artifact.manifest.entries["catalogue.json"].local_path == str(tmp_path / "catalogue.json")
    assert run.use_artifact.called is not offline, "W&B refuses it offline"
    logger.finalize.assert_called_once_with("failed")
    logger.experiment.finish.assert_called_once_with(exit_code=1)


def test_wandb_without_a_key_is_one_sentence_and_is_asked_once() -> None:
    logger = type("WandbLogger", (MagicMock,), {})()
    logger.log_hyperparams.side_effect = RuntimeError("No API key configured. Use `wandb login` to log in.")
    trainer: Any = SimpleNamespace(loggers=[logger])
    with pytest.raises(UserError, match="needs an API key of W&B"), tracking.tracked(trainer, {}, {}):
        pass
    assert not logger.finalize.called


def test_a_plain_config_has_no_secrets(compose_cfg: Any) -> None:
    cfg = compose_cfg("+api_key=x", "+store=s3://me:pass@host/x", "+list=[{password: y}]")
    found = plain(cfg)
    assert (found["api_key"], found["store"], found["list"]) == ("***", "s3://***@host/x", [{"password": "***"}])
    assert found["text"]["max_tokens"] == cfg.text.max_tokens
