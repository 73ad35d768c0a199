"""The item tower as a graph, whose shapes cannot depend on what it is given.

Where the item tower runs an encoder for the items that have its modality alone, the graph takes each modality of every
item, zeros where an item lacks it, and runs every encoder for all; the vectors are the same.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from avrec.batch import ItemBatch
from avrec.content.preprocess import ArraySpec
from avrec.towers.encoders.base import Encoder, random_array
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
        names = [f"{name}_{key}" for name, encoder in _encoders(tower) for key in encoder.arrays()]
        self.free = dict.fromkeys(["present", *names], (0,))

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Item embeddings (B, D) of each encoder's content and ``present`` (B, M)."""
        columns = []
        for m, (name, encoder) in enumerate(_encoders(self.tower)):
            present_U1 = inputs["present"][:, m, None]
            values = self.tower.project[name](encoder(encoder.filled(_of(name, inputs), ~present_U1)))
            columns.append(torch.where(present_U1, values, 0.0))
        return self.tower.fuse(torch.stack(columns, 1), inputs["present"])

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
        present = ArraySpec((len(self.tower.modalities),), "bool")
        inputs = {"present": random_array(present, count, rng)}
        for name, encoder in _encoders(self.tower):
            inputs |= {f"{name}_{key}": array for key, array in encoder.sample(count, rng).items()}
        return {name: torch.from_numpy(array) for name, array in inputs.items()}


def dense(tower: ItemTower, items: ItemBatch) -> dict[str, Tensor]:
    """An item graph's inputs for a batch of content that is not the output of frozen layers."""
    inputs = {"present": items.present_UM}
    for m, (modality, encoder) in enumerate(_encoders(tower)):
        for key, spec in _specs(encoder).items():
            name = f"{modality}_{key}"
            inputs[name] = torch.zeros(len(items), *spec.shape, dtype=getattr(torch, spec.dtype))
            if modality in items.content:
                content = items.content[modality][key]
                inputs[name][items.present_UM[:, m]] = content.to(inputs[name].dtype)
    return inputs


def _encoders(tower: ItemTower) -> list[tuple[str, Encoder]]:
    return list(tower.encoders.items())  # type: ignore[arg-type]


def _specs(encoder: Encoder) -> dict[str, ArraySpec]:
    """Half precision is how a store saves room; it is no part of the network."""
    wide = {"float16": "float32"}
    return {key: ArraySpec(spec.shape, wide.get(spec.dtype, spec.dtype)) for key, spec in encoder.arrays().items()}


def _of(modality: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{modality}_"
    return {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
