"""Settings and checkpoints that cannot work: each is one clear error, and nothing that was there is changed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from avrec.cli.main import user_errors_as_exit_codes
from avrec.errors import UserError
from avrec.run import build, config
from train import train

SMALL = ["trainer.max_epochs=2", "callbacks.early_stopping=null"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=abc", r"trainer\.max_epochs=abc is not possible\. Give a whole number from -1"),
        ("trainer.devices=2", r"trainer\.devices=2 is not possible yet"),
        ("evaluation.baselines=[popularty]", r"baselines=\['popularty'\] are not known\. Give some of popularity, "),
        ("trainer.precision=bf17", "trainer cannot be built from what was given: .*bf17"),
        (
            "trainer.accumulate_grad_batches=0",
            r"trainer\.accumulate_grad_batches=0 is not possible\. Give a whole number from 1",
        ),
        ("dim=abc", "item_tower cannot be built from what was given"),
        ("dim=15", r"user_tower\.attention\.heads=2 must divide dim=15"),
        ("dim=0", "dim=0"),
        ("user_tower.attention.heads=3", r"user_tower\.attention\.heads=3 must divide dim=16"),
        ("user_tower.attention=null", "user_tower cannot be built"),
        ("text.heads=3", "text cannot be built from what was given"),
        ("fusion.dropout=2.0", "item_tower cannot be built from what was given: dropout"),
        ("optimizer.lr=-1", r"optimizer\.lr must be a number above 0, .*got -1"),
        ("optimizer.lr=abc", r"optimizer\.lr must be .*got abc"),
        ("scheduler.floor=2", r"scheduler\.floor must be from 0 to 1; got 0\.05 and 2"),
        ("score.temperature=0.0", r"score\.temperature must be a number above 0, .*got 0\.0"),
        ("score.temperature=abc", "score cannot be built from what was given"),
        ("item_tower.modality_dropout=1.5", r"item_tower\.modality_dropout must be .*got 1\.5"),
        ("seed=-1", r"seed=-1 is not possible\. Give a whole number from 0"),
        ("seed=abc", "seed=abc is not possible"),
        ("history_length=abc", "datamodule cannot be built"),
        ("evaluation.ks=10", r"ks=10 cannot be measured\. .*ks=\[10,50\]"),
        ("evaluation.ks=[0]", r"ks=\[0\] cannot be measured"),
        ("evaluation.metrics=[ndgc]", r"metrics=\['ndgc'\] .* Give one or more of recall, ndcg"),
        ("evaluation.ks=null", r"evaluation\.ks=None is not possible\. Give a list: evaluation\.ks=\[10\]"),
        ("evaluation.metrics=null", r"evaluation\.metrics=None is not possible"),
        ("evaluation.baselines=null", r"evaluation\.baselines=None is not possible"),
        ("evaluation.validate=null", r"evaluation\.validate=None is not possible"),
        ("evaluation.validate=[]", r"evaluation\.validate has nothing\. Give monitor=val/ndcg@10, or add"),
        ("evaluation.validate=ndcg@10", r"evaluation\.validate=ndcg@10 is not possible\. Give a list"),
        ("monitor=null", r"monitor=None is not measured: .* Give monitor=val/ndcg@10"),
        ("monitor=train/loss", r"monitor=train/loss is not measured: .* Give monitor=val/ndcg@10"),
        ("evaluation.validate=[ndcg@5]", r"Give monitor=val/ndcg@5, or add its metric to evaluation\.validate"),
    ],
)
def test_a_value_that_cannot_work_is_one_clear_error(
    compose_cfg: Any, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(compose_cfg(override, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.fixture(scope="module")
def finished(compose_cfg: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch out of two."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(compose_cfg(*SMALL, "trainer.max_epochs=1", run_dir=run))
    return run


def only_weights(path: Path) -> None:
    torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)


@pytest.mark.parametrize(
    ("damage", "overrides", "message"),
    [
        (
            None,
            ["dim=32"],
            r"does not fit this model: size mismatch for .* Give a checkpoint of a run with these settings",
        ),
        (None, ["identity=none"], r"does not fit this model: "),
        (None, ["data.num_items=33"], "was trained on other items, users or interactions"),
        (None, ["data.seed=1"], "was trained on other items, users or interactions"),
        (None, ["datamodule.users_per_batch=4"], r"goes on with datamodule\.users_per_batch=8 .* Give the same"),
        (None, ["seed=3"], r"goes on with .*seed=0"),
        (None, ["optimizer.lr=1e-4"], r"goes on with .*optimizer\.lr=0\.005\. Give the same, or start anew"),
        (None, ["trainer.max_epochs=0"], r"is in epoch 1, and trainer\.max_epochs=0\. Give a larger one"),
        (Path.unlink, [], "is not a file"),
        (lambda path: path.write_text("no checkpoint"), [], "is no checkpoint, or is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), [], "is no checkpoint, or is damaged"),
        (only_weights, [], r"holds weights alone, and nothing to go on from\. Give RUN/checkpoints/last\.ckpt"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(
    compose_cfg: Any, finished: Path, tmp_path: Path, damage: Any, overrides: list[str], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    last = run / "checkpoints" / "last.ckpt"
    if damage:
        damage(last)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        train(compose_cfg(*SMALL, *overrides, f"ckpt={last}", run_dir=run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def from_os_error() -> None:
    try:
        open("/dev/null/log.txt")  # noqa: SIM115
    except OSError as error:
        raise ValueError("Unable to configure handler 'file'") from error


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: Path("/dev/null/run").mkdir(), "error: /dev/null/run cannot be opened or written: Not a directory."),
        (from_os_error, "error: /dev/null/log.txt cannot be opened or written: Not a directory."),
        (
            lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"),
            "A file cannot be opened or written: No space left",
        ),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence(
    act: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"), user_errors_as_exit_codes():
        act()
    err = capsys.readouterr().err
    assert said in err
    assert "give another place (hydra.run.dir" in err


@pytest.mark.parametrize("error", [ValueError("a bug"), BrokenPipeError(32, "Broken pipe"), OSError("no file")])
def test_other_errors_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), user_errors_as_exit_codes():
        raise error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"config\.yaml is not the config of a run: it has no data, no split"),
        ("a: [", r"config\.yaml cannot be read: .* It must be as train\.py wrote it"),
        ("", "is not the config of a run"),
    ],
)
def test_a_damaged_config_of_a_run_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    ckpt = tmp_path / "checkpoints" / "best.ckpt"
    ckpt.parent.mkdir()
    ckpt.touch()
    (tmp_path / "config.yaml").write_text(text)
    for read in (lambda: config.of_run(ckpt), lambda: config.changed_since(OmegaConf.create(), ckpt, ())):
        with pytest.raises(UserError, match=message):
            read()


def test_a_stop_waits_for_the_optimizer(compose_cfg: Any, tmp_path: Path) -> None:
    """Asked to stop after the first of two batches whose gradients are added up, it stops after the second."""
    import pytorch_lightning as pl

    from avrec.errors import TrainingStoppedError
    from avrec.training.checkpointing import GracefulStop

    class Ask(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            stop.signum = 15

    cfg = compose_cfg(*SMALL, "trainer.accumulate_grad_batches=2", run_dir=tmp_path)
    run = build.build_run(cfg)
    data, module = run.data, run.module
    trainer = build.build_trainer(cfg)
    stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
    trainer.callbacks.insert(0, Ask())
    with pytest.raises(TrainingStoppedError):
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed in (1, 2)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
