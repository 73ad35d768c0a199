"""Settings and checkpoints that cannot work: each is one clear error, and nothing that was there is changed.

Covers avrec.checked.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from avrec.cli.main import user_errors_as_exit_codes
from avrec.errors import UserError
from avrec.run import build, config
from avrec.run.validation import validate
from train import train

SMALL = ["trainer.max_epochs=2", "callbacks.early_stopping=null"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=abc", r"`trainer\.max_epochs` must be an integer ≥ -1; got abc\."),
        ("trainer.devices=2", r"`trainer\.devices` must be one of auto, 1 or .*; got 2\."),
        ("trainer.devices=[0,1]", r"`trainer\.devices` must name one device; got \[0, 1\]"),
        ("evaluation.baselines=[popularty]", r"each entry one of popularity, .* Did you mean popularity\?"),
        ("trainer.precision=bf17", r"`trainer\.precision` must be one of .*; got bf17\."),
        ("trainer.accumulate_grad_batches=0", r"`trainer\.accumulate_grad_batches` must be an integer ≥ 1; got 0"),
        ("+optimizer.foo=1", r"^Invalid `optimizer`: unknown argument `foo`\. Options: conf/optimizer/adamw\.yaml\.$"),
        ("+optimizer.wieght_decay=1", r"unknown argument `wieght_decay`\. Did you mean weight_decay\? Options: conf/"),
        ("callbacks.checkpoint.mode=most", r"^Invalid `callbacks\.checkpoint`: .*most"),
        ("dim=abc", "^`dim` must be an integer ≥ 1; got abc"),
        ("dim=15", r"`user_tower\.attention\.heads` must divide dim=15; got 2"),
        ("dim=0", "`dim` must be an integer ≥ 1; got 0"),
        ("user_tower.attention.heads=3", r"`user_tower\.attention\.heads` must divide dim=16; got 3"),
        ("user_tower.attention=null", r"`user_tower\.attention` must be a mapping with _target_; got null"),
        ("text.heads=3", r"`text\.heads` must divide text\.width=16; got 3"),
        ("fusion.dropout=2.0", r"`fusion\.dropout` must be a number in \[0, 1\); got 2\.0"),
        ("optimizer.lr=-1", r"`optimizer\.lr` must be a positive number \(> 0\); got -1\. Default: 0\.005"),
        ("optimizer.lr=abc", r"`optimizer\.lr` must be a positive number \(> 0\); got abc"),
        ("scheduler.floor=2", r"`scheduler\.floor` must be a number in \[0, 1\]; got 2"),
        ("score.temperature=0.0", r"`score\.temperature` must be a positive number \(> 0\); got 0\.0\. Default: 0\.1"),
        ("score.temperature=abc", r"`score\.temperature` must be .*; got abc"),
        ("item_tower.modality_dropout=1.5", r"`item_tower\.modality_dropout` must be .*\[0, 1\); got 1\.5"),
        ("split.val_share=0.9", r"must add up to less than 1; got split\.val_share=0\.9 and split\.test_share=0\.1"),
        ("seed=-1", r"`seed` must be an integer in \[0, 4294967295\]; got -1"),
        ("seed=abc", "`seed` must be .*; got abc"),
        ("history_length=abc", "`history_length` must be an integer ≥ 1; got abc"),
        ("evaluation.ks=10", r"`evaluation\.ks` must be a non-empty list, each entry an integer ≥ 1; got 10"),
        ("evaluation.ks=[0]", r"`evaluation\.ks` must be .*; got \[0\]"),
        ("evaluation.metrics=[ndgc]", r"each entry one of recall, ndcg, .*; got \[ndgc\]\. Did you mean ndcg\?"),
        ("evaluation.ks=null", r"`evaluation\.ks` must be .*; got null"),
        ("evaluation.metrics=null", r"`evaluation\.metrics` must be .*; got null"),
        ("evaluation.baselines=null", r"`evaluation\.baselines` must be .*; got null"),
        ("evaluation.validate=null", r"`evaluation\.validate` must be .*; got null"),
        ("evaluation.validate=[]", r"`evaluation\.validate` must be a non-empty list, each entry METRIC@K"),
        ("evaluation.validate=ndcg@10", r"`evaluation\.validate` must be .*; got ndcg@10"),
        ("monitor=null", r"`monitor` must be text; got null"),
        ("monitor=train/loss", r"`monitor` must be a metric of .*; got train/loss\. Use monitor=val/ndcg@10, or"),
        ("evaluation.validate=[ndcg@5]", r"Use monitor=val/ndcg@5, or add its metric to evaluation\.validate"),
    ],
)
def test_a_value_that_cannot_work_is_one_clear_error(
    compose_cfg: Any, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(compose_cfg(override, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()


ODD: list[Any] = ["abc", 0, -1, 1.5, None, [1], 10**12, float("nan")]


def test_any_odd_value_validates_or_is_one_sentence_that_names_its_key(compose_cfg: Any) -> None:
    tree: Any = OmegaConf.to_container(compose_cfg("logger=csv"), resolve=True)
    tries, refused = 0, list[str]()
    for node, prefix in nodes_of(tree):
        for name, given in list(node.items()):
            for odd in ODD if not isinstance(given, dict) else ():
                node[name] = odd
                tries += 1
                try:
                    validate(tree)
                except UserError as error:
                    refused.append(f"{prefix}{name}={odd}: {error}")
            node[name] = given
    assert [line for line in refused if line.partition("=")[0] not in line.partition(": ")[2]] == []
    assert tries > len(refused) > 400


def nodes_of(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """Every mapping of a config, with the start of its keys."""
    yield node, prefix
    for name, value in node.items():
        if isinstance(value, dict):
            yield from nodes_of(value, f"{prefix}{name}.")


def test_a_developers_mistake_keeps_its_traceback(compose_cfg: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr("avrec.towers.score.Score.__init__", broken)
    with pytest.raises(AttributeError, match="a bug"):
        config.instantiate(compose_cfg().score, "score", bias=0.0)


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
            r"does not fit this model: size mismatch for .* Use a checkpoint of a run with these settings",
        ),
        (None, ["identity=none"], r"does not fit this model: "),
        (None, ["data.num_items=33"], "was trained on other items, users or interactions"),
        (None, ["data.seed=1"], "was trained on other items, users or interactions"),
        (None, ["datamodule.users_per_batch=4"], r"goes on with datamodule\.users_per_batch=8 .* Use the same"),
        (None, ["seed=3"], r"goes on with .*seed=0"),
        (None, ["optimizer.lr=1e-4"], r"goes on with .*optimizer\.lr=0\.005\. Use the same, or start anew"),
        (None, ["trainer.max_epochs=0"], r"is in epoch 1, and trainer\.max_epochs=0\. Use a larger one"),
        (Path.unlink, [], "is not a file"),
        (lambda path: path.write_text("no checkpoint"), [], "is no checkpoint, or is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), [], "is no checkpoint, or is damaged"),
        (only_weights, [], r"holds weights alone, and nothing to go on from\. Use RUN/checkpoints/last\.ckpt"),
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
        (lambda: Path("/dev/null/run").mkdir(), "error: Cannot open or write /dev/null/run: Not a directory."),
        (from_os_error, "error: Cannot open or write /dev/null/log.txt: Not a directory."),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence(
    act: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"), user_errors_as_exit_codes():
        act()
    assert said in capsys.readouterr().err


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
    data.prepare(module.item_tower)
    trainer = build.build_trainer(cfg)
    stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))
    trainer.callbacks.insert(0, Ask())
    with pytest.raises(TrainingStoppedError):
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    assert trainer.fit_loop.epoch_loop.batch_progress.current.completed in (1, 2)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
