"""The whole road on a tiny catalogue: train.py, evaluate.py, export, resume, a clean stop, and users' mistakes.

Covers avrec.run.run, avrec.run.build, avrec.data.datamodule, avrec.data.sources.folder, avrec.data.tables,
avrec.training.module, avrec.training.checkpointing, avrec.training.monitoring, avrec.export.item_tower.

Covers avrec.cli.train and avrec.run.outputs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from avrec.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def finished(compose_cfg: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of two epochs: config, metrics, objects, folder."""
    from train import train

    run = tmp_path_factory.mktemp("finished")
    cfg = compose_cfg("trainer.max_epochs=2", run_dir=run)
    metrics, objects = train(cfg)
    return cfg, metrics, objects, run


def test_the_run_folder_is_complete(finished: Any) -> None:
    _, metrics, _, run = finished
    for name in ("config.yaml", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    report = json.loads((run / "metrics.json").read_text())
    assert set(report) == {"results", "timing", "data"}
    assert {"prepare", "fit", "test", "export", "total"} <= set(report["timing"])
    models = {result["model"] for result in report["results"]}
    content = {"content_knn", "content_knn_text", "content_knn_vision", "content_knn_audio"}
    four = ("text", "vision", "audio", "identity")
    ablation = {f"avrec without {name}" for name in four} | {f"avrec, {name} alone" for name in four}
    baselines = {"popularity", "recent_popularity", "random", "item_knn", "ease", "oracle"}
    assert models == {"avrec"} | baselines | content | ablation
    shares = [r["value"] for r in report["results"] if r["metric"].startswith("score_variance/")]
    assert sum(shares) == pytest.approx(1)
    assert 1 <= report["data"]["health"]["item_effective_rank"] <= 16
    for result in report["results"]:
        assert result["protocol"]["split"] == "temporal"
        assert result["low"] <= result["value"] <= result["high"]
    assert "ndcg@10" in metrics
    assert "val/ndcg@10" in metrics
    items = pl.read_parquet(run / "embeddings" / "items.parquet")
    assert items["vector"].to_numpy().shape == (32, 16)


def test_evaluate_gives_the_same_numbers_to_the_last_digit(finished: Any) -> None:
    from hydra import compose, initialize_config_dir

    from evaluate import evaluate

    _, _, _, run = finished
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", overrides=[f"ckpt={run}/checkpoints/best.ckpt"])
    evaluate(cfg)
    one = json.loads((run / "metrics.json").read_text())["results"]
    other = json.loads((run / "evaluation.json").read_text())["results"]
    assert one == other


def test_an_exported_tower_in_a_fresh_process_gives_the_runs_vectors(finished: Any, tmp_path: Path) -> None:
    _, _, objects, run = finished
    catalogue = objects["data"].catalogue
    items = [
        {"item_id": item.item_id, "text": item.text, **{kind: str(path) for kind, path in item.files.items()}}
        for item in catalogue.items
    ]
    items.append(
        {"title": "A film nobody has seen", "description": "about a lighthouse", "image": items[0].get("image")}
    )
    (tmp_path / "items.json").write_text(json.dumps(items))
    code = (
        "import avrec, json, sys, numpy as np;"
        f"tower = avrec.load_item_tower({str(run / 'item_tower')!r});"
        f"items = json.load(open({str(tmp_path / 'items.json')!r}));"
        f"np.save({str(tmp_path / 'vectors.npy')!r}, tower.embed(items, batch_size=7));"
        "found = {'pytorch_lightning', 'hydra', 'omegaconf', 'wandb'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    vectors = np.load(tmp_path / "vectors.npy")
    known = pl.read_parquet(run / "embeddings" / "items.parquet")["vector"].to_numpy()
    assert np.abs(vectors[:-1] - known).max() <= 1e-5
    assert np.isfinite(vectors[-1]).all()
    assert not [path for path in (run / "item_tower").iterdir() if path.suffix in (".pt", ".bin", ".pkl", ".ckpt")]


def test_an_exported_tower_says_what_is_wrong(finished: Any, tmp_path: Path) -> None:
    import avrec

    tower = avrec.load_item_tower(finished[3] / "item_tower")
    with pytest.raises(UserError, match="which this tower does not read"):
        tower.embed([{"titel": "x"}])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(UserError, match="could not be decoded"):
        tower.embed([{"title": "x", "video": broken}])
    assert tower.embed([{"title": "x", "video": broken}], skip_broken=True).shape == (1, 16)
    with pytest.raises(UserError, match="not an exported item tower"):
        avrec.load_item_tower(tmp_path)


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_a_resumed_run_ends_where_an_unbroken_one_does(compose_cfg: Any, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch by SIGTERM, then resumed: the same weights, with dropout and all."""
    from avrec.errors import TrainingStoppedError
    from train import train

    settings = ["trainer.max_epochs=3", "callbacks.early_stopping=null", "scheduler=constant"]
    whole, part, rest = (tmp_path / name for name in ("whole", "part", "rest"))
    train(compose_cfg(*settings, run_dir=whole))

    import avrec.training.checkpointing as callbacks

    class StopAfter(callbacks.GracefulStop):
        def on_train_batch_end(self, trainer: Any, *rest_: Any) -> None:
            if trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            super().on_train_batch_end(trainer, *rest_)

    cfg = compose_cfg(*settings, run_dir=part)
    original, callbacks.GracefulStop = callbacks.GracefulStop, StopAfter
    try:
        with pytest.raises(TrainingStoppedError, match="give the same overrides and ckpt="):
            train(cfg)
    finally:
        callbacks.GracefulStop = original
    last = part / "checkpoints" / "last.ckpt"
    assert last.is_file()
    state = torch.load(last, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert state["first_batch"] > 0, "the stop must fall in the middle of an epoch"
    train(compose_cfg(*settings, f"ckpt={last}", run_dir=rest))
    steps = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] for run in (whole, rest)]
    assert steps[0] == steps[1]
    one, other = weights(whole), weights(rest)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_goes_on_in_another_folder_with_the_best_that_it_had(
    compose_cfg: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from train import train

    settings = ["scheduler=constant", "evaluation.baselines=[]", "evaluation.ablation=false", "report=false"]
    part, rest = tmp_path / "part", tmp_path / "rest"
    train(compose_cfg(*settings, "trainer.max_epochs=1", run_dir=part))
    last = part / "checkpoints" / "last.ckpt"
    # What comes after is worse: nothing is learned at this rate, and the best is said to be out of reach.
    checkpoint = torch.load(last, weights_only=True)
    (best,) = (state for state in checkpoint["callbacks"].values() if state.get("monitor"))
    best["best_model_score"] = best["kth_value"] = torch.tensor(2.0)
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(2.0))
    torch.save(checkpoint, last)
    values, _ = train(compose_cfg(*settings, "trainer.max_epochs=2", f"ckpt={last}", run_dir=rest))
    assert values["val/ndcg@10"] == 2.0
    for name, value in weights(part, "best").items():
        torch.testing.assert_close(value, weights(rest, "best")[name], rtol=0, atol=0)
    (part / "checkpoints" / "best.ckpt").unlink()
    train(compose_cfg(*settings, "trainer.max_epochs=2", f"ckpt={last}", run_dir=tmp_path / "third"))
    assert "best.ckpt is gone: the best weights are those of the epochs from here on" in caplog.text


def test_a_run_goes_on_from_the_end_of_an_epoch(compose_cfg: Any, tmp_path: Path) -> None:
    """One epoch, then two more from its last.ckpt, equal three in one go."""
    from train import train

    settings = ["callbacks.early_stopping=null", "scheduler=constant"]
    whole, part, rest = (tmp_path / name for name in ("whole", "part", "rest"))
    train(compose_cfg(*settings, "trainer.max_epochs=3", run_dir=whole))
    train(compose_cfg(*settings, "trainer.max_epochs=1", run_dir=part))
    last = part / "checkpoints" / "last.ckpt"
    train(compose_cfg(*settings, "trainer.max_epochs=3", f"ckpt={last}", run_dir=rest))
    assert "ckpt: null" in (rest / "config.yaml").read_text()  # that run again is the unbroken one
    one, other = weights(whole), weights(rest)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_loss_that_is_not_finite_names_step_users_and_scores(
    compose_cfg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avrec.towers.score import Score
    from train import train

    monkeypatch.setattr(Score, "scale", lambda score, query: query * float("nan"))

    with pytest.raises(
        UserError, match=r"(?s)The loss is nan at step 0.*scores are not finite.*Users of the batch: user-"
    ):
        train(compose_cfg(run_dir=tmp_path))


@pytest.mark.parametrize("modality", ["text", "vision", "audio", "identity"])
def test_one_modality_alone_trains(modality: str, compose_cfg: Any) -> None:
    from avrec.run import build

    others = [name for name in ("text", "vision", "audio", "identity") if name != modality]
    overrides = [o for o in (f"{name}=none" for name in others)]
    cfg = compose_cfg()
    for name in others:
        cfg[name] = None
    run = build.build_run(cfg)
    data, module = run.data, run.module
    data.prepare(module.item_tower)
    batch = next(iter(data.train_dataloader()))
    assert module.item_tower.modalities == [modality]
    loss = module.objective(module.pairs(batch))
    loss.backward()
    assert torch.isfinite(loss)
    assert overrides


# ---------------------------------------------------------------------------------------------------------
# Mistakes: one clear error each


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small valid catalogue of text alone."""
    root = tmp_path / "catalogue"
    root.mkdir()
    pl.DataFrame({"item_id": list("abcd"), "title": ["One", "Two", "Three", "Four"]}).write_csv(root / "items.csv")
    rows = [(user, item, time) for user in "uvwx" for time, item in enumerate("abcd")]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").with_columns(
        stars=pl.lit(3)
    ).write_csv(root / "interactions.csv")
    return root


def load(root: Path, **options: Any) -> Any:
    from avrec.data.sources.folder import FolderSource

    return FolderSource(root, **options).load()


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_a_valid_folder_loads_in_each_format(folder: Path) -> None:
    one = load(folder, feedback="stars", feedback_map="scale")
    assert one.log.weight.tolist() == [1.0] * 16
    for suffix, write in ((".parquet", pl.DataFrame.write_parquet), (".jsonl", pl.DataFrame.write_ndjson)):
        other = folder.parent / suffix[1:]
        other.mkdir()
        for name in ("items", "interactions"):
            write(pl.read_csv(folder / f"{name}.csv"), other / f"{name}{suffix}")
        same = load(other)
        assert same.items == [*one.items]
        assert same.user_ids == one.user_ids
        assert (same.log.item == one.log.item).all()


@pytest.mark.parametrize(
    ("mistake", "options", "message"),
    [
        (lambda root: shutil.rmtree(root), {}, "is not a folder. It must be the folder"),
        (lambda root: (root / "items.csv").unlink(), {}, "has no items table. It must hold exactly one of items.csv"),
        (lambda root: change(root / "items.csv", "item_id", "id"), {}, "has no column item_id. It has id, title"),
        (lambda root: (root / "interactions.csv").write_text("user_id,item_id\n"), {}, "is empty"),
        (lambda root: (root / "interactions.csv").write_text(""), {}, "could not be read as csv|is empty"),
        (lambda root: change(root / "interactions.csv", "u,a", "u,zzz"), {}, "item_id 'zzz' has no row in items"),
        (lambda root: change(root / "items.csv", "b,Two", "a,Two"), {}, "item_id 'a' names 2 rows"),
        (
            lambda root: change(root / "interactions.csv", ",3\n", ",-3\n"),
            {"feedback": "stars", "feedback_map": "scale"},
            "negative weight",
        ),
        (
            lambda root: None,
            {"feedback": "likes", "feedback_map": "scale"},
            "has no such column. It has user_id, item_id, timestamp, stars",
        ),
        (lambda root: None, {"feedback_map": "sqrt"}, "must be one of implicit, scale, log1p, threshold; got sqrt"),
        (lambda root: None, {"feedback": "stars", "feedback_map": "threshold"}, "needs a limit"),
        (
            lambda root: change(root / "interactions.csv", "u,a,0", "u,a,soon"),
            {},
            "column timestamp must hold a finite number",
        ),
        (lambda root: None, {"text": ["plot"]}, "names plot, which the items table lacks"),
        (
            lambda root: (root / "items.csv").write_text(
                "item_id,title,image\na,One,../../etc/passwd\nb,Two,\nc,Three,\nd,Four,\n"
            ),
            {},
            "lies outside",
        ),
        (lambda root: change(root / "interactions.csv", "v,b", ",b"), {}, "has no user_id"),
        (lambda root: (root / "items.parquet").write_text("x"), {}, "has 2 files items table|exactly one of"),
    ],
)
def test_a_mistake_in_a_folder_is_one_clear_error(folder: Path, mistake: Any, options: Any, message: str) -> None:
    mistake(folder)
    with pytest.raises(UserError, match=message):
        load(folder, **options)


def run_train(*overrides: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, env=env)


def test_a_runs_config_makes_the_same_run_again_in_a_folder_of_its_own(finished: Any) -> None:
    _, _, _, run = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    here = run.parent
    done = run_train("--config-path", run.name, "--config-name", "config", cwd=here)
    assert done.returncode == 0, done.stderr
    (again,) = (here / "runs").iterdir()
    shutil.move(again, here / "again")
    one, other = (json.loads((folder / "metrics.json").read_text())["results"] for folder in (run, here / "again"))
    assert one == other
    assert (here / "again" / "log.txt").is_file()
    assert (here / "again" / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_config_path_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    done = run_train("--config-path", "nowhere", "--config-name", "config", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shell_completes_groups_and_keys(tmp_path: Path) -> None:
    """As the script that `-sc install=bash` prints asks for it."""
    for line, words in (("objective=b", "objective=bpr"), ("optimizer.l", "optimizer.lr=")):
        done = run_train("-sc", "query=bash", cwd=tmp_path, COMP_LINE=f"python train.py {line}")
        assert done.stdout.split() == [words]


def test_the_defaults_are_listed(tmp_path: Path) -> None:
    done = run_train("--info", "defaults", cwd=tmp_path)
    assert done.returncode == 0
    assert "objective/log_sigmoid" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("optimiser.lr=1", "Unknown key `optimiser.lr`. Did you mean optimizer.lr?"),
        ("text=null", "`text` must be one of features, minilm, none, small; got null."),
        ("fusion=null", "`fusion` must be one of attention, concat, gated, mean; got null."),
        ("hydra/launcher=slrum", "Unknown option hydra/launcher=slrum. Install its package"),
        ("text=minlm", "Unknown option text=minlm. Did you mean minilm?"),
        ("vision=none vision.size=64", "`vision.size` is not an argument of the chosen vision."),
    ],
)
def test_a_misspelt_override_names_the_nearest(overrides: str, message: str, tmp_path: Path) -> None:
    done = run_train(*overrides.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_mistake_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_train("data=folder", "data.root=nowhere", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("It must be the folder that holds items.csv and interactions.csv.")
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.rglob("*")} <= {"run", "log.txt"}


def test_help_is_a_page() -> None:
    done = run_train("--help", cwd=ROOT)
    assert done.returncode == 0
    for word in ("objective: bpr", "data=folder data.root=PATH", "Examples", "sweep: grid, optuna"):
        assert word in done.stdout
