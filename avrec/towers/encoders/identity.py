"""Identity encoder: a learned vector per item, with an "unknown item" vector for the others."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from avrec.batch import Array
from avrec.checked import Count, Share, Whole, checked
from avrec.content.preprocess import ArraySpec
from avrec.towers.encoders.base import Encoder


class IdentityEncoder(Encoder):
    """A learned vector per item.

    Row 0 is the "unknown item" vector. An item without a training interaction gets row 0, and during training
    an item is given row 0 at a rate (per item and step), so that the row means "some item".

    Args:
        num_items: items of the catalogue; the table has one row more.
        width: of the vectors.
        unknown_rate: share of items given the unknown vector in a training step, 0 to 1.
    """

    reads = "index"
    modality = "identity"
    preprocess = None

    @checked
    def __init__(self, num_items: Whole, width: Count = 64, unknown_rate: Share = 0.2) -> None:
        super().__init__()
        self.num_items = num_items
        self.out_dim = width
        self.unknown_rate = unknown_rate
        self.table = nn.Embedding(num_items + 1, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)

    def forward(self, content: dict[str, Tensor]) -> Float[Tensor, "n width"]:
        """Look up n items by ``content["row"]`` (n,): item index + 1, or 0 for unknown."""
        row = content["row"].long()
        if self.training and self.unknown_rate > 0:
            row = row.masked_fill(torch.rand(row.shape, device=row.device) < self.unknown_rate, 0)
        return self.table(row)

    def arrays(self) -> dict[str, ArraySpec]:
        """The row of the table."""
        return {"row": ArraySpec((), "int64")}

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Array]:
        """Random rows."""
        return {"row": rng.integers(256, size=count) % self.table.num_embeddings}
