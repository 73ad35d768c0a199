"""docs/extending.md: its encoder trains, is exported and loaded, as it is printed, from files outside avrec."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import avrec
from avrec.cli import embed
from avrec.errors import UserError
from avrec.export.graph import ONNX, load_onnx
from avrec.retrieval.recommend import Recommender
from avrec.run.config import import_classes
from avrec.run.restore import of_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()


def block(name: str) -> str:
    found = re.search(rf"```\w+\n# {re.escape(name)}\n(.*?)```", PAGE, re.S)
    assert found, name
    return found.group(1)


def test_the_encoder_is_short_trains_and_is_loaded(
    tmp_path: Path, demo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = block("colours.py")
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 30
    (tmp_path / "colours.py").write_text(code)
    for name in ("gru.py", "hinge.py"):
        (tmp_path / name).write_text(block(name))
    for name in ("vision/colours", "user_tower/gru", "objective/hinge"):
        path = tmp_path / "my_conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block(f"my_conf/{name}.yaml"))
    small = ["text=none", "audio=none", "dim=16", "logger=none", "trainer.max_epochs=1", "report=false"]
    small += ["evaluation.baselines=[]", "datamodule.prepare.workers=0", "trainer.accelerator=cpu"]
    places = [f"data.root={demo_root}", "data=folder", f"cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"]
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--config-dir",
        "my_conf",
        "vision=colours",
        "user_tower=gru",
        "objective=hinge",
        *small,
        *places,
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    command = [sys.executable, "-m", "avrec", "export", "run=run", "target=user_tower", "format=onnx"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    tower, own = tmp_path / "run" / "item_tower", pl.read_parquet(tmp_path / "run" / "embeddings" / "items.parquet")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"of colours\.ColourEncoder, which is not of avrec.*classes=\[ColourEncoder\]"):
        avrec.load_item_tower(tower)
    assert "colours" not in sys.modules, "a file's word imports no code"
    from gru import GRUTower

    user_tower = avrec.load_user_tower(tmp_path / "run" / "user_tower", classes=[GRUTower])
    inputs = user_tower.inputs([own["vector"].to_numpy()[:3]])
    found = load_onnx(tmp_path / "run" / "user_tower" / ONNX)(inputs)
    np.testing.assert_allclose(found, user_tower.run(inputs), atol=1e-4)
    arguments = [f"tower={tower}", f"items={demo_root}", f"out={tmp_path}/out", "workers=0"]
    monkeypatch.setattr(sys, "argv", ["avrec embed", *arguments, "classes=[colours.ColourEncoder]"])
    assert embed.main() == 0
    found = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert found["item_id"].to_list() == own["item_id"].to_list()
    np.testing.assert_allclose(found["vector"].to_numpy(), own["vector"].to_numpy(), atol=1e-5)
    poster = next((demo_root / "posters").iterdir())
    (tmp_path / "new.csv").write_text(f"item_id,image\nnew,{poster.name}\n")
    (tmp_path / poster.name).write_bytes(poster.read_bytes())
    run = of_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    audiences, told = Recommender(run.data, run.module).audiences(tmp_path / "new.csv")
    assert (audiences[0].item_id, told) == ("new", [])


@pytest.mark.parametrize(
    "path", ["nowhere.Colours", "avrec.batch.Nothing", "avrec.run.config.import_classes", "Colours"]
)
def test_a_class_that_cannot_be_imported_is_named(path: str) -> None:
    with pytest.raises(UserError, match=rf"`classes` must name MODULE\.CLASS .*; got {path}: .+\."):
        import_classes([path])
