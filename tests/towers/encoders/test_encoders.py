"""avrec.towers.encoders.base, and what the encoders' preprocesses share."""

import numpy as np
import pytest
import torch

from avrec.content.items import Decoded, RawItem
from avrec.errors import UserError
from avrec.towers.encoders.audio import AudioPreprocess
from avrec.towers.encoders.base import cut_of, masked_mean
from avrec.towers.encoders.text import TextEncoder, TextPreprocess, learn_tokenizer
from avrec.towers.encoders.vision import VisionPreprocess


def test_cut() -> None:
    assert [cut_of(value, 4, "text") for value in ("all", "none", 1, 4)] == [None, 4, 3, 0]
    for wrong in (0, 5, "some"):
        with pytest.raises(UserError, match="a number from 1 to 4"):
            cut_of(wrong, 4, "text")


def test_masked_mean_leaves_out_what_is_not_present() -> None:
    values = torch.tensor([[[1.0], [3.0], [99.0]], [[7.0], [7.0], [7.0]]])
    present = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, present).tolist() == [[2.0], [0.0]]


def test_preprocess_gives_the_arrays_it_promises() -> None:
    text = TextPreprocess(max_tokens=8)
    text.fit([RawItem("a", "alpha beta gamma"), RawItem("b", "alpha beta")])
    rng = np.random.default_rng(0)
    decoded = Decoded(
        "alpha ünïcode ☃",
        rng.integers(0, 255, (30, 20, 3)).astype(np.uint8),
        None,
        rng.normal(size=9000).astype(np.float32),
    )
    for preprocess in (text, VisionPreprocess(16, 2), AudioPreprocess(seconds=1.0)):
        row = preprocess(decoded)
        assert row is not None
        for name, spec in preprocess.arrays().items():
            assert (row[name].shape, str(row[name].dtype)) == (spec.shape, spec.dtype)
        assert preprocess(Decoded()) is None


def test_a_learned_tokenizer_is_deterministic_and_travels_with_the_weights() -> None:
    texts = ["the cat sat", "the dog sat", "a cat and a dog"] * 3
    assert (
        learn_tokenizer(texts, 300).backend_tokenizer.to_str() == learn_tokenizer(texts, 300).backend_tokenizer.to_str()
    )
    one = TextEncoder(width=8, depth=1, heads=2, vocab_size=300)
    one.preprocess.fit([RawItem(str(n), text) for n, text in enumerate(texts)])
    other = TextEncoder(width=8, depth=1, heads=2, vocab_size=300)
    other.load_state_dict(one.state_dict())
    assert other.preprocess.tokenizer_json() == one.preprocess.tokenizer_json()


@pytest.mark.parametrize("trainable", ["none", 1])
def test_stored_frozen_output_equals_the_direct_road(trainable: str | int) -> None:
    encoder = TextEncoder(width=8, depth=2, heads=2, vocab_size=300, max_tokens=8, trainable_layers=trainable).eval()
    encoder.preprocess.fit([RawItem("a", "the cat sat on the mat")])
    content = {"tokens": torch.tensor([[5, 6, 7, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4, 3, 0]], dtype=torch.int32)}
    torch.testing.assert_close(encoder(encoder.lower(content)), encoder(content), rtol=1e-5, atol=1e-5)
    assert not encoder.network.embeddings.word_embeddings.weight.requires_grad
