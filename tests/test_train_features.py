"""The whole road with feature matrices in place of files: train.py, evaluate.py, resume, export, mistakes.

Covers avrec.towers.encoders.features with avrec.run.build, avrec.data.datamodule and avrec.export.item_tower.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import avrec  # noqa: E402
from avrec.content.items import RawItem  # noqa: E402
from avrec.errors import UserError  # noqa: E402
from avrec.towers.encoders import features  # noqa: E402

NO_TEXT, NO_VISION, NEITHER = 3, 5, 7


@pytest.fixture(scope="module")
def root(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny demo's log and titles with two feature matrices, and not one media file."""
    root = tmp_path_factory.mktemp("catalogue")
    items = pl.read_csv(demo_root / "items.csv").select("item_id", "title")
    items.write_csv(root / "items.csv")
    (root / "interactions.csv").write_bytes((demo_root / "interactions.csv").read_bytes())
    rng = np.random.default_rng(0)
    text = rng.normal(size=(len(items), 12)).astype(np.float16)
    text[NO_TEXT], text[NEITHER] = np.nan, 0
    np.save(root / "text_feat.npy", text)
    # The pictures' rows are in an order of their own, and two are not there.
    rows = [n for n in rng.permutation(len(items)).tolist() if n not in (NO_VISION, NEITHER)]
    (root / "pictures").mkdir()
    np.save(root / "pictures" / "image_feat.npy", 40 + 9 * rng.normal(size=(len(items), 20))[rows])
    (root / "pictures" / "ids.txt").write_text("\n".join(items["item_id"][n] for n in rows))
    return root


@pytest.fixture(scope="module")
def compose_cfg(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compose conf/train.yaml for that folder."""
    from hydra import compose, initialize_config_dir

    cache = tmp_path_factory.mktemp("cache")

    def make(run_dir: Path, *overrides: str) -> Any:
        settings = ["data=folder", f"data.root={root}", "text=features", "vision=features", "logger=none", "dim=16"]
        settings += ["text.path=text_feat.npy", "vision.path=pictures/image_feat.npy", "vision.ids=pictures/ids.txt"]
        settings += ["vision.hidden=6", "datamodule.users_per_batch=8", "trainer.max_epochs=2", "trainer=cpu"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("train", overrides=[f"run_dir={run_dir}", f"cache_dir={cache}", *settings, *overrides])

    return make


@pytest.fixture(scope="module")
def finished(compose_cfg: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run: its objects and folder."""
    from train import train

    run = tmp_path_factory.mktemp("finished")
    _, objects = train(compose_cfg(run))
    return objects, run


def test_the_modalities_are_there_although_no_item_names_a_file(finished: Any, root: Path) -> None:
    objects, run = finished
    tower, data = objects["module"].item_tower, objects["data"]
    assert tower.modalities == ["text", "vision", "identity"]
    assert json.loads((run / "metrics.json").read_text())["data"]["present"] == {
        "text": 30,
        "vision": 30,
        "identity": 32,
    }
    index = np.array([2, NO_TEXT, 4, NO_VISION, NEITHER])
    batch = data.items(index)
    assert batch.present_UM.tolist() == [[t, v, True] for t, v in ((1, 1), (0, 1), (1, 1), (1, 0), (0, 0))]
    text = np.load(root / "text_feat.npy")
    np.testing.assert_array_equal(batch.content["text"]["features"].numpy(), text[[2, 4, NO_VISION]])
    ids = (root / "pictures" / "ids.txt").read_text().split()
    rows = [ids.index(data.catalogue.items[n].item_id) for n in (2, NO_TEXT, 4)]
    pictures = np.load(root / "pictures" / "image_feat.npy")[rows]
    np.testing.assert_array_equal(batch.content["vision"]["features"].numpy(), pictures.astype(np.float32))


def test_gradients_reach_what_is_above_the_features(finished: Any) -> None:
    data, module = finished[0]["data"], finished[0]["module"]
    module.zero_grad()
    batch = data.items(np.arange(8))
    module.item_tower.eval()(batch)[:, 0].sum().backward()
    for name in ("encoders.vision.network.1.weight", "project.text.1.weight", "project.vision.1.weight"):
        assert module.item_tower.get_parameter(name).grad.abs().sum() > 0, name


def test_evaluate_gives_the_same_numbers(finished: Any) -> None:
    from hydra import compose, initialize_config_dir

    from evaluate import evaluate

    run = finished[1]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate(compose("evaluate", overrides=[f"ckpt={run}/checkpoints/best.ckpt"]))
    one, other = (json.loads((run / name).read_text())["results"] for name in ("metrics.json", "evaluation.json"))
    assert one == other


def test_a_run_goes_on_from_the_end_of_an_epoch(compose_cfg: Any, tmp_path: Path) -> None:
    from train import train

    settings = ["callbacks.early_stopping=null", "scheduler=constant", "datamodule.loader_workers=1"]
    whole, part, rest = (tmp_path / name for name in ("whole", "part", "rest"))
    train(compose_cfg(whole, *settings))
    train(compose_cfg(part, *settings, "trainer.max_epochs=1"))
    last = "checkpoints/last.ckpt"
    train(compose_cfg(rest, *settings, f"ckpt={part / last}"))
    one, other = (torch.load(run / last, weights_only=True)["state_dict"] for run in (whole, rest))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6, msg=name)


def test_an_exported_tower_embeds_an_item_given_its_vectors(
    finished: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, run = finished
    text, pictures = np.load(root / "text_feat.npy"), np.load(root / "pictures" / "image_feat.npy")
    picture_of = dict(zip((root / "pictures" / "ids.txt").read_text().split(), pictures, strict=True))
    # The matrices are the run's; an exported tower must do without.
    monkeypatch.setattr(features, "_mapped", None)
    tower = avrec.load_item_tower(run / "item_tower")
    catalogue = objects["data"].catalogue
    items = [
        {"item_id": item.item_id, "title": title, "text_features": text[n], "vision_features": picture}
        for n, (item, title) in enumerate(zip(catalogue.items, catalogue.titles, strict=True))
        for picture in [picture_of.get(item.item_id)]
    ]
    known = pl.read_parquet(run / "embeddings" / "items.parquet")["vector"].to_numpy()
    assert np.abs(tower.embed(items, batch_size=7) - known).max() <= 1e-5
    raw = RawItem(catalogue.items[0].item_id, features={"text": text[0], "vision": items[0]["vision_features"]})
    assert np.abs(tower.embed([raw])[0] - known[0]).max() <= 1e-5
    new = tower.embed(
        [{"title": "Nobody has seen it", "text_features": text[0].tolist()}, {"text_features": text[1].tolist()}]
    )
    assert np.isfinite(new).all()
    assert np.abs(new[0] - new[1]).max() > 1e-3
    with pytest.raises(UserError, match=r"Item 'new' has nothing that this tower reads\. It reads text, vision"):
        tower.embed([{"item_id": "new", "title": "read by nothing here"}])
    with pytest.raises(UserError, match=r"text_features of item '' has shape \(2,\); this tower reads vectors of 12"):
        tower.embed([{"text_features": [1, 2]}])
    with pytest.raises(UserError, match=r"keys \['audio_features'\].* It reads .*'text_features'.*'vision_features'"):
        tower.embed([{"audio_features": [1, 2]}])


def test_an_export_names_no_file_of_the_run(finished: Any, tmp_path: Path) -> None:
    from avrec.export.item_tower import export_item_tower

    objects, run = finished
    config = json.loads((run / "item_tower" / "config.json").read_text())
    assert config["encoders"]["text"] == {"kind": "features", "modality": "text", "width": 12, "hidden": None}
    assert config["encoders"]["identity"]["kind"] == "identity"
    ids = [item.item_id for item in objects["data"].catalogue.items]
    loaded = avrec.load_item_tower(run / "item_tower")
    again = export_item_tower(loaded.tower, tmp_path / "again", ids, objects["data"].trained_N)
    assert sorted(path.name for path in again.iterdir()) == sorted(p.name for p in (run / "item_tower").iterdir())
    assert json.loads((again / "config.json").read_text())["encoders"] == config["encoders"]
    assert (again / "model.safetensors").read_bytes() == (run / "item_tower" / "model.safetensors").read_bytes()
    for path in (run / "item_tower").glob("*.json"):
        assert ".npy" not in path.read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text.path=???", "`text.path` must be given; got nothing. Add text.path=VALUE"),
        ("text.path=null", "text.path must be given and is not. Add text.path=FILE"),
        ("text.path=text_fest.npy", "text_fest.npy is not a file"),
        ("vision.ids=null", "has 30 rows, the catalogue 32 items"),
        ("vision.hidden=-1", "`vision.hidden` must be an integer ≥ 1 or null; got -1"),
    ],
)
def test_a_mistake_is_one_clear_error(compose_cfg: Any, tmp_path: Path, override: str, message: str) -> None:
    from avrec.run import build

    def prepare() -> None:
        run = build.build_run(compose_cfg(tmp_path, override))
        run.data.prepare(run.module.item_tower)

    with pytest.raises(UserError, match=message):
        prepare()
