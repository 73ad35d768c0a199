"""avrec.run.export and avrec.export.card: from a run to its towers, by the command that users give."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from huggingface_hub import ModelCard

import avrec
from avrec.cli.export import main

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def run(compose_cfg: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    sys.path.insert(0, str(ROOT))
    from train import train

    folder = tmp_path_factory.mktemp("run")
    cfg = compose_cfg("evaluation.baselines=[]", "evaluation.ablation=false", run_dir=folder)
    return folder, train(cfg)[1]["data"]


@pytest.fixture
def command(monkeypatch, run):
    def give(*arguments: str, ckpt: Path | None = None) -> int:
        ckpt = ckpt or run[0] / "checkpoints" / "best.ckpt"
        monkeypatch.setattr(sys, "argv", ["export", f"ckpt={ckpt}", *arguments])
        return main()

    return give


def test_queries_are_those_of_the_run(command, run, tmp_path):
    folder, data = run
    assert command("target=both", "users=hashed", f"out={tmp_path}") == 0
    assert (tmp_path / "item_tower" / "model.safetensors").read_bytes() == (
        folder / "item_tower" / "model.safetensors"
    ).read_bytes()
    tower = avrec.load_user_tower(tmp_path / "user_tower", folder / "embeddings" / "items.parquet")
    asked = pl.read_parquet(folder / "embeddings" / "users.parquet")
    known, index = data.known("test"), asked["user"].to_list()
    users = [data.catalogue.user_ids[user] for user in index]
    rows = [slice(known.starts[user], known.starts[user + 1]) for user in index]
    histories = [[data.catalogue.items[item].item_id for item in known.item[row]] for row in rows]
    table = pl.read_csv(data.catalogue.root / "users.csv")
    by_user = {row.pop("user_id"): row for row in table.to_dicts()}
    columns = [by_user[user] for user in users]
    found = tower.query(histories, [known.time[row] for row in rows], columns, users)
    np.testing.assert_allclose(found, asked["vector"].to_numpy(), atol=1e-5)


def test_by_default_no_file_knows_of_single_users(command, run, tmp_path):
    assert command("target=both", f"out={tmp_path}") == 0
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        named = [user for user in run[1].catalogue.user_ids if user.encode() in content]
        assert not named, path
    assert not (tmp_path / "user_tower" / "user_ids.json").exists()
    measured = json.loads((tmp_path / "user_tower" / "export.json").read_text())["measured"]
    assert set(measured) == {"the run", "float32"}
    stated = {r["metric"]: r["value"] for r in results(run[0]) if r["slice"] == "all" and r["model"] == "avrec"}
    assert measured["the run"] == pytest.approx({name: stated[name] for name in measured["the run"]}, abs=1e-9)


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text())["results"]


def test_the_card(command, run, tmp_path):
    assert command("target=both", f"out={tmp_path}") == 0
    for kind in ("item_tower", "user_tower"):
        card = ModelCard.load(tmp_path / kind / "README.md")
        assert card.data.library_name == "avrec"
        assert card.data.license is None
        assert {"two-tower", "retrieval"} <= set(card.data.tags)
        assert card.data.metrics == ["recall", "ndcg", "mrr"]
        first = next(r for r in results(run[0]) if r["model"] == "avrec")
        assert f"| {first['value']:.4f} | {first['low']:.4f} to {first['high']:.4f} |" in card.text
        assert "| items | 32 |" in card.text
        assert "## Limits" in card.text
        assert f"avrec.load_{kind}(" in card.text
    by_training = (run[0] / "item_tower" / "README.md").read_text()
    assert by_training == (tmp_path / "item_tower" / "README.md").read_text()


def test_other_weights_than_the_best_were_not_measured(command, run, tmp_path):
    assert command(f"out={tmp_path / 'tower'}", ckpt=run[0] / "checkpoints" / "last.ckpt") == 0
    assert "## Metrics" not in (tmp_path / "tower" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["target=items"], "target must be one of item_tower, user_tower, both; got items."),
        (["format=tflite"], "format must be one of safetensors, onnx, torch_export; got tflite."),
        (["int8=true"], "int8=true needs format=onnx; got format=safetensors."),
        (["int8=maybe"], "int8 must be true or false; got maybe."),
        (["users=hashed"], "users=hashed needs a user tower: target=user_tower or target=both; got target=item_tower."),
        (["targt=both"], "Unknown key `targt`. Did you mean target?"),
    ],
)
def test_mistakes_are_named(command, capsys, arguments, message):
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(command, run, tmp_path, capsys):
    ckpt = run[0] / "checkpoints" / "evil.ckpt"
    torch.save({"state_dict": Evil(tmp_path / "touched")}, ckpt)
    assert command(f"out={tmp_path / 'tower'}", ckpt=ckpt) == 2
    assert "is no checkpoint, or is damaged" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_int8_states_what_it_loses(command, tmp_path):
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert command("target=both", "format=onnx", "int8=true", f"out={tmp_path}") == 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    for kind in ("item_tower", "user_tower"):
        told = json.loads((tmp_path / kind / "export.json").read_text())
        assert told["differences"]["onnx/model.onnx"] <= 1e-4
        assert set(told["measured"]["int8"]) == {"recall@10", "ndcg@10", "recall@50", "ndcg@50"}
        assert f"| int8 | {told['measured']['int8']['recall@10']:.4f} |" in (tmp_path / kind / "README.md").read_text()
