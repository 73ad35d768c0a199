"""The item tower as a graph, whose shapes cannot depend on what it is given.

Where the item tower runs an encoder for the items that have its modality alone, the graph takes each modality of every
item, zeros where an item lacks it, and runs every encoder for all; the vectors are the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avrec.batch import Array, ItemBatch
from avrec.content.preprocess import ArraySpec
from avrec.towers.encoders.features import FeaturesEncoder
from avrec.towers.item_tower import ItemTower


class ItemGraph(nn.Module):
    """An item tower over content of all items.

    Args:
        tower: the item tower.
    """

    output = "item"

    def __init__(self, tower: ItemTower) -> None:
        super().__init__()
        self.tower = tower.eval()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Item embeddings (B, D) of the arrays of ``specs_of`` and ``present`` (B, M)."""
        columns = []
        for m, (name, encoder) in enumerate(self.tower.encoders.items()):
            present_U1 = inputs["present"][:, m, None]
            values = self.tower.project[name](encoder(self._filled(name, inputs, ~present_U1)))
            columns.append(torch.where(present_U1, values, 0.0))
        return self.tower.fuse(torch.stack(columns, 1), inputs["present"])

    def _filled(self, modality: str, inputs: Mapping[str, Tensor], absent_U1: Tensor) -> dict[str, Tensor]:
        """Content of which no item's is masked throughout: the NaN of one would reach all through int8's scales."""
        content = _of(modality, inputs)
        if "tokens" in content:
            some_word = int(self._pad() == 0)
            content["tokens"] = content["tokens"].masked_fill(absent_U1, some_word)
        if "length" in content:
            content["length"] = content["length"].clamp(min=1)
        if "frame_present" in content:
            content["frame_present"] = content["frame_present"] | absent_U1
        return content

    def _pad(self) -> int:
        reader: Any = self.tower.encoders["text"]
        return reader.preprocess.tokenizer.pad_token_id

    def reference(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The same from the tower itself."""
        present_UM = inputs["present"]
        content = {
            name: {key: value[present_UM[:, m]] for key, value in _of(name, inputs).items()}
            for m, name in enumerate(self.tower.modalities)
            if present_UM[:, m].any()
        }
        return self.tower(ItemBatch(torch.arange(len(present_UM)), present_UM, content))

    def random(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Inputs of ``count`` items, each without some modalities."""
        inputs = {name: _random(name, (count, *spec.shape), spec.dtype, rng) for name, spec in self._specs().items()}
        if "audio_length" in inputs:
            inputs["audio_length"] = rng.integers(1, inputs["audio_log_mel"].shape[1] + 1, count, np.int32)
        if "identity_row" in inputs:
            inputs["identity_row"] %= self.tower.get_submodule("encoders.identity.table").num_embeddings
        if "text_tokens" in inputs:
            # Padding stands at the end alone.
            tokens, pad = inputs["text_tokens"], self._pad()
            tokens[tokens == pad] += 1
            tokens[np.arange(tokens.shape[1]) >= rng.integers(1, tokens.shape[1] + 1, (count, 1))] = pad
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def _specs(self) -> dict[str, ArraySpec]:
        present = ArraySpec((len(self.tower.modalities),), "bool")
        return {
            "present": present,
            **{name: spec for m in self.tower.modalities for name, spec in _specs(self.tower, m)},
        }


def dense(tower: ItemTower, items: ItemBatch) -> dict[str, Tensor]:
    """An item graph's inputs for a batch of content that is not the output of frozen layers."""
    inputs = {"present": items.present_UM}
    for m, modality in enumerate(tower.modalities):
        for name, spec in _specs(tower, modality):
            inputs[name] = torch.zeros(len(items), *spec.shape, dtype=getattr(torch, spec.dtype))
            if modality in items.content:
                content = items.content[modality][name.removeprefix(f"{modality}_")]
                inputs[name][items.present_UM[:, m]] = content.to(inputs[name].dtype)
    return inputs


def _specs(tower: ItemTower, modality: str) -> list[tuple[str, ArraySpec]]:
    encoder: Any = tower.encoders[modality]
    if isinstance(encoder, FeaturesEncoder):
        arrays = {"features": ArraySpec((encoder.width,), "float32")}
    elif encoder.preprocess is None:
        arrays = {"row": ArraySpec((), "int64")}
    else:
        arrays = encoder.preprocess.arrays()
    # Half precision is how a store saves room; it is no part of the network.
    wide = {"float16": "float32"}
    return [(f"{modality}_{key}", ArraySpec(s.shape, wide.get(s.dtype, s.dtype))) for key, s in arrays.items()]


def _of(modality: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{modality}_"
    return {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}


def _random(name: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> Array:
    if dtype == "float32":
        return rng.standard_normal(shape, np.float32)
    if dtype == "bool":  # at least one of each row
        drawn = rng.random(shape)
        return drawn >= np.minimum(drawn.max(1, keepdims=True), 0.5)
    return rng.integers(256, size=shape).astype(dtype)
