"""avrec.export.graph and avrec.export.item_graph: programs without Python give the towers' vectors."""

import importlib

import jaxtyping
import numpy as np
import pytest
import torch
from test_export_user_tower import LONGEST
from test_export_user_tower import make_tower as make_user_tower

import avrec
from avrec.batch import ItemBatch
from avrec.content.items import RawItem
from avrec.errors import UserError
from avrec.export import graph as graph_module
from avrec.export.classes import OWN
from avrec.export.graph import INT8, ONNX, PT2, check_packages, load_onnx, load_program, write_graph
from avrec.export.item_graph import ItemGraph, dense
from avrec.export.item_tower import export_item_tower
from avrec.export.user_tower import UserGraph
from avrec.towers.encoders.audio import AudioEncoder
from avrec.towers.encoders.features import FeaturesEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import Fusion
from avrec.towers.item_tower import ItemTower

DIM = 8
FUSIONS = {name: cls for name, cls in OWN.items() if issubclass(cls, Fusion)}


@pytest.fixture(autouse=True)
def unchecked_shapes():
    """The checks of shapes that the tests put into the towers cannot be traced."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def full_tower(fusion: str = "ConcatFusion", trainable: str | int = "all") -> ItemTower:
    torch.manual_seed(1)
    encoders = {
        "text": TextEncoder(width=16, depth=2, heads=2, vocab_size=300, max_tokens=12, trainable_layers=trainable),
        "vision": VisionEncoder(size=32, video_frames=2, trainable_layers=trainable),
        "audio": AudioEncoder(seconds=1.0, mels=16, width=16, depth=2, heads=2, trainable_layers=trainable),
        "identity": IdentityEncoder(30, width=6),
    }
    encoders["text"].preprocess.fit([RawItem("a", "some words")])
    return ItemTower(encoders, FUSIONS[fusion], DIM).eval()


def small_tower() -> ItemTower:
    torch.manual_seed(1)
    encoders = {"text": FeaturesEncoder("text", width=5, hidden=7), "identity": IdentityEncoder(30, width=6)}
    return ItemTower(encoders, FUSIONS["ConcatFusion"], DIM).eval()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_item_with_what_it_has(fusion, rng):
    """The graph, run as it stands, against the tower that runs each encoder for its own items alone."""
    graph = ItemGraph(full_tower(fusion))
    inputs = graph.random(9, rng)
    assert 0 < inputs["present"].sum() < inputs["present"].numel()
    with torch.no_grad():
        found, expected = graph(inputs), graph.reference(inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.isfinite(found).all()


def test_dense_is_what_the_batch_holds(rng):
    graph = ItemGraph(small_tower())
    inputs = graph.random(6, rng)
    content = {
        "text": {"features": inputs["text_features"][inputs["present"][:, 0]]},
        "identity": {"row": inputs["identity_row"][inputs["present"][:, 1]]},
    }
    found = dense(graph.tower, ItemBatch(torch.arange(6), inputs["present"], content))
    for m, name in enumerate(("text_features", "identity_row")):
        present = inputs["present"][:, m]
        torch.testing.assert_close(found[name][present], inputs[name][present])
        assert not found[name][~present].any()


def user_graph() -> UserGraph:
    return UserGraph(make_user_tower(), 0.07, DIM, LONGEST)


@pytest.mark.parametrize(
    "make", [lambda: ItemGraph(small_tower()), pytest.param(user_graph, marks=pytest.mark.slow)], ids=["items", "users"]
)
def test_programs_are_the_towers(make, tmp_path, rng):
    graph = make()
    found = write_graph(graph, tmp_path, "onnx", int8=True)
    assert found[str(ONNX)] <= 1e-4 < found[str(INT8)] < 5
    found = write_graph(graph, tmp_path, "torch_export")
    assert found[str(PT2)] <= 1e-5
    inputs = graph.random(13, rng)
    with torch.no_grad():
        expected = graph.reference(inputs).numpy()
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    for program in (load_onnx(tmp_path / ONNX), load_program(tmp_path / PT2)):
        np.testing.assert_allclose(program(arrays), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fusion", "trainable"),
    [("ConcatFusion", "all"), ("MeanFusion", "none"), ("GatedFusion", 1), ("AttentionFusion", "all")],
)
def test_programs_of_all_modalities(tmp_path, fusion, trainable):
    graph = ItemGraph(full_tower(fusion, trainable))
    assert write_graph(graph, tmp_path, "onnx", int8=True)[str(ONNX)] <= 1e-4
    assert write_graph(graph, tmp_path, "torch_export")[str(PT2)] <= 1e-4


def test_inputs_of_an_exported_tower(tmp_path):
    folder = export_item_tower(small_tower(), tmp_path / "tower", [f"i{n}" for n in range(30)], np.ones(30, bool))
    exported = avrec.load_item_tower(folder)
    items = [{"item_id": "i3"}, {"item_id": "new", "text_features": [1, 2, 3, 4, 5]}]
    inputs = {name: torch.from_numpy(array) for name, array in exported.inputs(items).items()}
    with torch.no_grad():
        found = ItemGraph(exported.tower)(inputs).numpy()
    np.testing.assert_allclose(found, exported.embed(items), atol=1e-6)


def test_a_program_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_module, "_difference", lambda graph, program: float("nan"))
    with pytest.raises(UserError, match=r"model\.pt2 differs from its tower by nan.*Choose format=safetensors"):
        write_graph(ItemGraph(small_tower()), tmp_path, "torch_export")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name):
    real = importlib.import_module

    def without(wanted: str, *args):
        if wanted == name:
            raise ImportError(wanted)
        return real(wanted, *args)

    monkeypatch.setattr(graph_module.importlib, "import_module", without)
    with pytest.raises(
        UserError, match=rf"needs the package {name}\. Install the extra: pip install 'avrec\[export\]'"
    ):
        check_packages()
