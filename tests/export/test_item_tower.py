"""Exported item towers: a stranger's vectors are the run's.

Covers avrec.towers.rebuildable.
"""

import json
import os
import subprocess
import sys
import wave
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

import avrec
from avrec.content.items import RawItem
from avrec.content.prepare import prepare_content
from avrec.data.collate import Identity, ItemBatches
from avrec.data.sources.folder import FolderSource
from avrec.data.tables import Catalogue
from avrec.errors import UserError
from avrec.export import folder as folder_module
from avrec.export.classes import OWN
from avrec.export.item_tower import export_item_tower
from avrec.export.user_tower import export_user_tower
from avrec.towers.encoders.audio import AudioEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import Fusion
from avrec.towers.item_tower import ItemTower
from avrec.towers.score import Score
from avrec.towers.user_tower import MeanHistory

DIM = 8
FEW = 10
FUSIONS = {name: cls for name, cls in OWN.items() if issubclass(cls, Fusion)}
VARIANTS = {name: (name, "all") for name in FUSIONS} | {
    "frozen": ("ConcatFusion", "none"),
    "half_frozen": ("GatedFusion", 1),
}
NEW = {"title": "A brand new upload", "description": "Nobody has seen it"}


@dataclass
class Run:
    """A tower, what it read in the run, and what was exported."""

    catalogue: Catalogue
    tower: ItemTower
    trained_N: Any
    folder: Path
    cache: Path

    def vectors(self, items: list[RawItem], trained_N: Any) -> Any:
        """The run's road: content store, item batches, tower."""
        content: dict[str, Any] = {}
        for name, encoder in self.tower.encoders.items():
            if encoder.preprocess is None:
                content[name] = Identity(trained_N)
            else:
                frozen = encoder.frozen_layers()
                content[name] = prepare_content(items, encoder.preprocess, self.cache, workers=0, frozen=frozen)
        batch = ItemBatches(content)(np.arange(len(items)))
        with torch.no_grad():
            return self.tower.eval()(batch).numpy()

    def export(self, folder: Path) -> Path:
        ids = [item.item_id for item in self.catalogue.items]
        return export_item_tower(self.tower, folder, ids, self.trained_N, self.catalogue.text)


def make_tower(catalogue: Catalogue, fusion: str, trainable: str | int) -> ItemTower:
    torch.manual_seed(len(fusion))
    encoders = {
        "text": TextEncoder(width=16, depth=2, heads=2, vocab_size=300, max_tokens=24, trainable_layers=trainable),
        "vision": VisionEncoder(size=32, video_frames=2, trainable_layers=trainable),
        "audio": AudioEncoder(seconds=1.0, mels=16, width=16, depth=2, heads=2, trainable_layers=trainable),
        "identity": IdentityEncoder(len(catalogue.items), width=6),
    }
    options = {"heads": 2} if fusion == "AttentionFusion" else {}
    tower = ItemTower(encoders, partial(FUSIONS[fusion], **options), DIM)
    for encoder in encoders.values():
        if encoder.preprocess is not None:
            encoder.preprocess.fit(catalogue.items)
    for parameter in tower.parameters():
        # Away from what a fresh network has, so that a weight that is not exported shows.
        parameter.data += 0.02 * torch.randn_like(parameter)
    for projection in tower.project.values():
        projection[0].fit(torch.randn(9, projection[0].mean.numel()))
    return tower


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """While another process computes, threads that wait for each other wait long."""
    threads = torch.get_num_threads()

    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def catalogue(demo_root) -> Catalogue:
    whole = FolderSource(demo_root).load()
    return replace(whole, items=whole.items[:FEW])


@pytest.fixture(scope="module")
def rows(demo_root) -> list[dict[str, Any]]:
    """The first items as mappings of raw text and files."""
    columns = ["item_id", "title", "description", "image", "video"]
    table = pl.read_csv(demo_root / "items.csv").select(columns).head(FEW)
    return [
        {key: str(demo_root / value) if key in ("image", "video") and value else value for key, value in row.items()}
        for row in table.to_dicts()
    ]


@pytest.fixture(scope="module")
def runs(catalogue, tmp_path_factory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    trained_N = np.arange(len(catalogue.items)) % 4 != 1
    made = {}
    for name, (fusion, trainable) in VARIANTS.items():
        run = Run(catalogue, make_tower(catalogue, fusion, trainable), trained_N, root / name, root / "cache")
        run.export(run.folder)
        made[name] = run
    return made


@pytest.fixture(scope="module")
def run(runs) -> Run:
    return runs["ConcatFusion"]


@pytest.fixture(scope="module")
def exported(run):
    return avrec.load_item_tower(run.folder)


@pytest.fixture(scope="module")
def files(demo_root, tmp_path_factory) -> dict[str, Path]:
    """Files of an upload that is in no catalogue, and a broken one."""
    folder = tmp_path_factory.mktemp("upload")
    with wave.open(str(folder / "new.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        samples = np.sin(np.arange(9000) / 9) * 9000
        sound.writeframes(samples.astype("<i2").tobytes())
    (folder / "broken.jpg").write_bytes(b"no picture")
    video = next((demo_root / "videos").iterdir())
    image = next((demo_root / "posters").iterdir())
    return {"audio": folder / "new.wav", "broken": folder / "broken.jpg", "video": video, "image": image}


STRANGER = """
import json, pickle, sys

blocked = ("pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb", "tensorboard")
sys.modules.update(dict.fromkeys(blocked))  # importing one of them raises

import numpy as np
import torch
import timm
import avrec

def refuse(*args, **kwargs):
    raise RuntimeError("something was unpickled")

avrec.load_item_tower, avrec.load_user_tower  # imports may unpickle; loading a tower may not
work = json.load(sys.stdin)
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
vectors = {name: avrec.load_item_tower(folder).embed(work["items"]) for name, folder in work["folders"].items()}
assert all(array.dtype == np.float32 for array in vectors.values())
users = avrec.load_user_tower(work["users"])
np.savez(work["out"], **vectors, users=users.query([vectors["ConcatFusion"][:3], []], [[1, 5, 9], []]))
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A fresh process that starts by importing torch and the like."""
    environment = os.environ | {"PYTHONPATH": str(Path(avrec.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", STRANGER],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
    )
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def stranger(process, runs, rows, files, tmp_path_factory):
    """The process, told to embed the first items and a new one with every exported tower, and what it will write."""
    out = tmp_path_factory.mktemp("stranger") / "vectors.npz"
    new = NEW | {"video": str(files["video"]), "audio": str(files["audio"])}
    folders = {name: str(run.folder) for name, run in runs.items()}
    users = export_user_tower(MeanHistory(), Score(temperature=0.5), out.parent / "users", DIM, 2)
    work = {"folders": folders, "items": [*rows, new], "out": str(out), "users": str(users)}
    process.stdin.write(json.dumps(work))
    process.stdin.close()
    process.stdin = None
    return process, out


def test_a_stranger_is_on_the_way(stranger):
    """Starts it, so that it imports torch while the other tests run; the last test reads what it found."""
    assert stranger[0].pid


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_vectors_do_not_depend_on_the_batch(exported, rows, run, batch_size):
    expected = run.vectors(run.catalogue.items, run.trained_N)
    np.testing.assert_allclose(exported.embed(rows, batch_size=batch_size), expected, atol=1e-5)


def test_raw_items_of_the_catalogue(exported, run):
    vectors = exported.embed(run.catalogue.items)
    np.testing.assert_allclose(vectors, run.vectors(run.catalogue.items, run.trained_N), atol=1e-5)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_nothing_to_embed(exported):
    assert exported.embed([]).shape == (0, DIM) == (0, exported.dim)


@pytest.mark.parametrize(
    "kinds", [("title",), ("image",), ("video",), ("audio",), ("audio", "title"), ("image", "video", "audio", "title")]
)
def test_new_items_with_any_modalities(exported, run, files, kinds):
    item = {kind: NEW["title"] if kind == "title" else files[kind] for kind in kinds}
    raw = RawItem("new", NEW["title"] if "title" in kinds else None, **{k: files[k] for k in kinds if k != "title"})
    expected = run.vectors([raw], np.array([False]))
    np.testing.assert_allclose(exported.embed([item]), expected, atol=1e-5)
    assert np.abs(exported.embed([item, {"text": "other"}])[0] - expected[0]).max() < 1e-5


def test_an_identity_is_the_trained_items_own(exported, run):
    title = {"title": "the same"}
    ids = [None, "stranger", *(run.catalogue.items[n].item_id for n in (0, 1, 2))]
    vectors = exported.embed([title | {"item_id": item_id} for item_id in ids])
    # Item 1 is not trained: it is as unknown as the stranger.
    np.testing.assert_allclose(vectors[[1, 3]], vectors[[0, 0]], atol=1e-6)
    assert np.abs(vectors[[2, 4]] - vectors[0]).max(1).min() > 1e-3
    assert len(exported.rows) == run.trained_N.sum()


def test_text_is_joined_as_in_the_catalogue(exported):
    vectors = exported.embed([NEW, {"text": ". ".join(NEW.values())}, dict(reversed(NEW.items()))])
    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], atol=1e-6)


def test_paths_may_be_relative(exported, files, monkeypatch):
    monkeypatch.chdir(files["audio"].parent)
    np.testing.assert_array_equal(exported.embed([{"audio": "new.wav"}]), exported.embed([{"audio": files["audio"]}]))


def test_unknown_keys_are_named(exported):
    with pytest.raises(
        UserError, match=r"keys \['plot', 'year'\], which this tower does not read\. It reads .*'title'"
    ):
        exported.embed([NEW, {"title": "x", "year": 1999, "plot": "y"}])


@pytest.mark.parametrize("name", ["broken", "missing"])
def test_a_broken_file(exported, files, name):
    path = files["broken"].parent / ("broken.jpg" if name == "broken" else "nowhere.jpg")
    item = NEW | {"item_id": "up", "image": path}
    message = rf"{path} of item 'up' could not be decoded: .+ Mend the file, or give skip_broken=True"
    with pytest.raises(UserError, match=message):
        exported.embed([item])
    np.testing.assert_allclose(exported.embed([item], skip_broken=True), exported.embed([NEW]), atol=1e-6)


@pytest.mark.parametrize("broken", [False, True])
def test_an_item_with_nothing(run, files, tmp_path, broken):
    tower = ItemTower({"vision": run.tower.encoders["vision"]}, FUSIONS["MeanFusion"], DIM)
    exported = avrec.load_item_tower(export_item_tower(tower, tmp_path / "vision", ["a"], np.array([True])))
    assert exported.rows == {}
    item = {"item_id": "up", "text": "words"} | ({"image": files["broken"]} if broken else {})
    message = r"Item 'up' has nothing that this tower reads\. It reads vision; give at least one"
    with pytest.raises(UserError, match=message):
        exported.embed([{"image": files["image"]}, item], skip_broken=True)


def test_slots_that_the_catalogue_did_not_fill_stay_closed(files, tmp_path):
    encoder = VisionEncoder(size=32, video_frames=2)
    encoder.preprocess.fit([RawItem("a", image=files["image"])])
    tower = ItemTower({"vision": encoder}, FUSIONS["MeanFusion"], DIM)
    exported = avrec.load_item_tower(export_item_tower(tower, tmp_path / "posters", ["a"], np.array([True])))
    assert vars(exported.tower.encoders["vision"].preprocess) == vars(encoder.preprocess)
    both, poster = exported.embed([{"image": files["image"], "video": files["video"]}, {"image": files["image"]}])
    np.testing.assert_allclose(both, poster, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no config\.json: it is not an exported item tower\. Use RUN/item_tower"),
        (
            {"model_type": "bert"},
            r"is of model_type 'bert', format None\. This version reads 'avrec_item_tower', format 1",
        ),
        ({"model_type": "avrec_item_tower", "format": 2}, r"format 2\. This version reads .*format 1.*Export it again"),
        ("{", r"config\.json could not be read as JSON: .+Export it again"),
    ],
)
def test_not_an_export(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        avrec.load_item_tower(tmp_path)


class Sum(Fusion):
    """A fusion of somebody's own."""

    def __init__(self, modalities: int, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, values_UMD: torch.Tensor, present_UM: torch.Tensor) -> torch.Tensor:
        return self.scale * (values_UMD * present_UM[..., None]).sum(1)


def test_a_fusion_of_ones_own_is_given_to_be_loaded(run, tmp_path, rows):
    tower = ItemTower(dict(run.tower.encoders.items()), partial(Sum, scale=2.0), DIM)
    folder = export_item_tower(tower, tmp_path / "sum", [], np.array([], bool), run.catalogue.text)
    with pytest.raises(UserError, match=rf"{Sum.__module__}\.Sum, which is not of avrec"):
        avrec.load_item_tower(folder)
    loaded = avrec.load_item_tower(folder, classes=[Sum])
    assert loaded.tower.fusion.options() == {"scale": 2.0}
    assert np.isfinite(loaded.embed(rows)).all()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="not an exported item tower"):
        avrec.load_item_tower(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["preprocessor_config.json", "item_ids.json", "model.safetensors"])
def test_an_export_that_lost_a_file(run, tmp_path, name):
    folder = run.export(tmp_path / "tower")
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}: it is not an exported item tower"):
        avrec.load_item_tower(folder)


def test_weights_of_another_tower(run, tmp_path):
    folder = run.export(tmp_path / "tower")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoders.identity.table.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit its config\.json: \['encoders\.identity\.table\.weight'\]"):
        avrec.load_item_tower(folder)


def test_weights_that_are_not_finite(run, tmp_path):
    folder = run.export(tmp_path / "tower")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoders.identity.table.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="has numbers that are not finite, in encoders.identity.table.weight"):
        avrec.load_item_tower(folder)


def test_item_ids_of_another_tower(run, tmp_path):
    folder = run.export(tmp_path / "tower")
    (folder / "item_ids.json").write_text('{"i": 99}')
    with pytest.raises(UserError, match="gives 'i' the row 99, .* the file is of another tower"):
        avrec.load_item_tower(folder)


def test_an_older_export_is_replaced_as_a_whole(runs, tmp_path, rows):
    folder = tmp_path / "deep" / "tower"
    runs["MeanFusion"].export(folder)
    (folder / "stale.txt").write_text("old")
    assert runs["GatedFusion"].export(folder) == folder
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["tower"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert json.loads((folder / "config.json").read_text())["fusion"]["name"] == "GatedFusion"


def test_an_export_that_fails_leaves_the_older_one(run, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    folder = run.export(tmp_path / "tower")
    before = sorted(folder.iterdir())
    monkeypatch.setattr(folder_module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        run.export(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["tower"]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("modality", "changes"),
    [
        ("text", {"name": "{there}"}),
        ("vision", {"name": "resnet18", "weights": "{there}/weights.pth"}),
        ("vision", {"name": "local-dir:{there}"}),
        ("text", {"kind": "features", "path": "{there}/matrix.npy"}),
    ],
)
def test_no_encoder_is_read_from_elsewhere(run, tmp_path, modality, changes):
    folder = run.export(tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    config["encoders"][modality] |= {key: value.format(there=tmp_path) for key, value in changes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="encoder would be read from elsewhere"):
        avrec.load_item_tower(folder)


def test_an_export_is_json_and_safetensors(runs):
    for run in runs.values():
        for path in run.folder.rglob("*"):
            assert path.suffix in (".json", ".safetensors") or path.name == "README.md", path
            if path.suffix == ".json":
                json.loads(path.read_text())
        load_file(run.folder / "model.safetensors")


def test_exporting_an_export_changes_nothing(run, exported, tmp_path):
    ids = [item.item_id for item in run.catalogue.items]
    again = export_item_tower(exported.tower, tmp_path / "again", ids, run.trained_N, exported.text)
    assert {path.name for path in again.iterdir()} == {path.name for path in run.folder.iterdir()}
    for name in ("config.json", "preprocessor_config.json", "item_ids.json", "model.safetensors"):
        assert (again / name).read_bytes() == (run.folder / name).read_bytes(), name
    # The tokenizer's files remember besides how it was last called and where it came from.
    models = [json.loads((folder / "tokenizer.json").read_text())["model"] for folder in (again, run.folder)]
    assert models[0] == models[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_strangers_vectors_are_the_runs(runs, stranger, files, variant):
    process, out = stranger
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    run = runs[variant]
    new = RawItem("new", ". ".join(NEW.values()), video=files["video"], audio=files["audio"])
    expected = run.vectors([*run.catalogue.items, new], np.append(run.trained_N, False))
    with np.load(out) as found:
        np.testing.assert_allclose(found[variant], expected, atol=1e-5)
        users = [found["ConcatFusion"][1:3].mean(0) / 0.5, np.zeros(DIM)]
        np.testing.assert_allclose(found["users"], users, atol=1e-5)


def test_an_export_of_before_the_card_still_loads(run, exported, rows, tmp_path):
    folder = run.export(tmp_path / "tower")
    (folder / "README.md").unlink()
    np.testing.assert_array_equal(avrec.load_item_tower(folder).embed(rows[:2]), exported.embed(rows[:2]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"junk"),
        ("tokenizer.json", b"{}"),
        ("preprocessor_config.json", b'{"video": {}}'),
        ("config.json", b'{"model_type": "avrec_item_tower", "format": 1, "encoders": {"smell": {}}}'),
    ],
)
def test_a_damaged_export_is_named_in_a_sentence(run, tmp_path, name, content):
    folder = run.export(tmp_path / "tower")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"tower is damaged .* Export it again: avrec export") as found:
        avrec.load_item_tower(folder)
    assert "\n" not in str(found.value)
