"""Four ways to make one vector (U, D) of the M modalities that an item has."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avrec.checked import Count, Rate, checked
from avrec.towers.rebuildable import Rebuildable


class Fusion(Rebuildable, ABC):
    """A fusion: built from M, D and its own arguments."""

    HANDED = ("modalities", "dim")

    @abstractmethod
    def forward(self, values_UMD: Float[Tensor, "U M D"], present_UM: Bool[Tensor, "U M"]) -> Float[Tensor, "U D"]:
        """One vector for each item; what ``values_UMD`` holds where a modality is not present must not matter."""


class ConcatFusion(Fusion):
    """Concatenation and an MLP, added to the weighted mean: late fusion with interactions between modalities.

    What is missing enters as zeros, and the mask itself is read, so that "missing" differs from "zero".
    """

    @checked
    def __init__(self, modalities: int, dim: int, hidden: Count = 256, dropout: Rate = 0.1) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(modalities * (dim + 1), hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.mean = MeanFusion(modalities, dim)

    def forward(self, values_UMD: Float[Tensor, "U M D"], present_UM: Bool[Tensor, "U M"]) -> Float[Tensor, "U D"]:
        """Fuse."""
        values_UMD = _kept(values_UMD, present_UM)
        joined = torch.cat([values_UMD.flatten(1), present_UM.to(values_UMD.dtype)], dim=1)
        return self.mlp(joined) + self.mean(values_UMD, present_UM)


class MeanFusion(Fusion):
    """Weighted mean with one learned weight per modality, over the modalities that are present."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.logit_M = nn.Parameter(torch.zeros(modalities))

    def forward(self, values_UMD: Float[Tensor, "U M D"], present_UM: Bool[Tensor, "U M"]) -> Float[Tensor, "U D"]:
        """Fuse."""
        return _weighted(values_UMD, self.logit_M.expand(present_UM.shape), present_UM)


class GatedFusion(Fusion):
    """Gated fusion (Arevalo et al. 2017): each item weighs its modalities by what they hold."""

    def __init__(self, modalities: int, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(modalities * (dim + 1), modalities)
        self.transform = nn.ModuleList(nn.Linear(dim, dim) for _ in range(modalities))

    def forward(self, values_UMD: Float[Tensor, "U M D"], present_UM: Bool[Tensor, "U M"]) -> Float[Tensor, "U D"]:
        """Fuse."""
        values_UMD = _kept(values_UMD, present_UM)
        logit_UM = self.gate(torch.cat([values_UMD.flatten(1), present_UM.to(values_UMD.dtype)], dim=1))
        transformed = torch.stack([layer(values_UMD[:, m]).tanh() for m, layer in enumerate(self.transform)], dim=1)
        return _weighted(transformed, logit_UM, present_UM)


class AttentionFusion(Fusion):
    """Self-attention (``heads`` must divide D) among an item's modalities, read by a learned query."""

    @checked
    def __init__(self, modalities: int, dim: int, heads: Count = 4) -> None:
        super().__init__()
        self.kind_MD = nn.Parameter(torch.randn(modalities, dim) * 0.02)
        self.query_D = nn.Parameter(torch.randn(dim) * 0.02)
        self.layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, values_UMD: Float[Tensor, "U M D"], present_UM: Bool[Tensor, "U M"]) -> Float[Tensor, "U D"]:
        """Fuse."""
        query = self.query_D.expand(values_UMD.shape[0], 1, -1)
        tokens = torch.cat([query, _kept(values_UMD, present_UM) + self.kind_MD], dim=1)
        # The query is a token of its own: an item without any modality still attends to something.
        absent = torch.cat([present_UM.new_zeros(present_UM.shape[0], 1), ~present_UM], dim=1)
        return self.layer(tokens, src_key_padding_mask=absent)[:, 0]


def _kept(values_UMD: Tensor, present_UM: Tensor) -> Tensor:
    return values_UMD.masked_fill(~present_UM.unsqueeze(-1), 0.0)


def _weighted(values_UMD: Tensor, logit_UM: Tensor, present_UM: Tensor) -> Tensor:
    """Mean with softmax weights over what is present; zeros for an item without any modality."""
    weight_UM = logit_UM.masked_fill(~present_UM, float("-inf")).softmax(1)
    weight_UM = weight_UM.masked_fill(~present_UM, 0.0)
    return (weight_UM.unsqueeze(-1) * _kept(values_UMD, present_UM)).sum(1)
