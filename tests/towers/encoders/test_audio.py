"""avrec.towers.encoders.audio: a sound's vector depends on the sound alone, and frozen depth can be stored."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avrec.content.items import Decoded
from avrec.errors import UserError
from avrec.towers.encoders.audio import AudioEncoder, AudioPreprocess


def make(**arguments: Any) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(**{"seconds": 1.0, "width": 8, "depth": 3, "heads": 2, **arguments})


def content(*lengths: int) -> dict[str, Tensor]:
    """Spectrograms of these lengths; noise beyond the end, which nobody may read."""
    generator = torch.Generator().manual_seed(1)
    log_mel = torch.randn(len(lengths), 32, 64, generator=generator).half()
    return {"log_mel": log_mel, "length": torch.tensor(lengths, dtype=torch.int32)}


@pytest.mark.parametrize("trainable", ["all", "none", 1, 2])
def test_a_vector_depends_on_its_sound_alone(trainable: str | int) -> None:
    """To 1e-5: longer companions, what lies beyond the end, and torch's own fast paths."""
    encoder = make(trainable_layers=trainable).eval()
    lengths = (32, 1, 5, 18, 31)
    given = content(*lengths)
    together = encoder(given)
    assert torch.isfinite(together).all()
    louder = given["log_mel"].clone()
    for row, length in enumerate(lengths):
        louder[row, length:] = 50
        alone = {"log_mel": given["log_mel"][row : row + 1], "length": given["length"][row : row + 1]}
        torch.testing.assert_close(encoder(alone)[0], together[row], rtol=1e-5, atol=1e-5)
        trimmed = {**alone, "log_mel": alone["log_mel"][:, :length]}
        torch.testing.assert_close(encoder(trimmed)[0], together[row], rtol=1e-5, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(encoder(alone)[0], together[row], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder({**given, "log_mel": louder}), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trainable", ["none", 1, 2, 3])
def test_the_frozen_layers_output_can_be_stored(trainable: str | int) -> None:
    encoder, given = make(trainable_layers=trainable).eval(), content(32, 1, 18)
    frozen = encoder.frozen_layers()
    stored = frozen({name: tensor.numpy() for name, tensor in given.items()})
    for name, spec in frozen.arrays().items():
        assert (stored[name].shape[1:], str(stored[name].dtype)) == (spec.shape, spec.dtype)
    tensors = {name: torch.from_numpy(array) for name, array in stored.items()}
    torch.testing.assert_close(encoder(tensors), encoder(given), rtol=1e-5, atol=1e-5)
    short = {name: tensor[1:] for name, tensor in tensors.items()}
    torch.testing.assert_close(encoder(short), encoder(given)[1:], rtol=1e-5, atol=1e-5)
    whole = make().eval()
    whole.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(whole(given), encoder(given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("trainable", "trained_layers"), [("all", 3), ("none", 0), (1, 1), (2, 2), (3, 3)])
def test_trainable_layers(trainable: str | int, trained_layers: int) -> None:
    encoder = make(trainable_layers=trainable).train()
    encoder(content(32, 7)).square().sum().backward()
    stem = [encoder.convolutions, encoder.position]
    for place, part in enumerate([*stem, *encoder.layers]):
        trained = trainable == "all" or place > 4 - trained_layers
        assert part.training == trained, "what is frozen stays in evaluation mode"
        for parameter in part.parameters():
            assert parameter.requires_grad == (parameter.grad is not None) == trained
    assert encoder.norm.weight.grad is not None


@pytest.mark.parametrize("wrong", [0, 4, "some"])
def test_refuses_a_cut_that_is_not_there(wrong: str | int) -> None:
    with pytest.raises(UserError, match=rf"audio\.trainable_layers must be all, none or .* 1 to 3, .*got {wrong}\."):
        make(trainable_layers=wrong)


def test_the_network_is_rebuilt_from_its_options() -> None:
    one, given = make(trainable_layers=1, mels=32, hop=256).eval(), content(20)
    given["log_mel"] = given["log_mel"][..., :32]
    other = AudioEncoder(**one.options()).eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(given), one(given))


def test_loudness_does_not_speak_and_short_sounds_are_sounds() -> None:
    preprocess = AudioPreprocess(seconds=1.0)
    sound = np.random.default_rng(0).normal(size=9000).astype(np.float32) * 0.1
    quiet, loud = preprocess(Decoded(sound=sound)), preprocess(Decoded(sound=sound * 4))
    assert quiet is not None
    assert loud is not None
    assert quiet["length"] == 9000 // 512 + 1
    np.testing.assert_allclose(quiet["log_mel"], loud["log_mel"], atol=0.01)
    assert (quiet["log_mel"][quiet["length"] :] == 0).all()
    click = preprocess(Decoded(sound=np.ones(1, np.float32)))
    assert click is not None
    assert click["length"] >= 1
    assert torch.isfinite(
        make()(dict(log_mel=torch.from_numpy(click["log_mel"])[None], length=torch.tensor([1])))
    ).all()
    assert preprocess(Decoded(sound=np.zeros(0, np.float32))) is None
