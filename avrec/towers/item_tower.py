"""The item tower: what an item is, as one vector."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from avrec.batch import MODALITIES, Array, ItemBatch
from avrec.checked import Count, Rate, checked
from avrec.errors import UserError
from avrec.towers.encoders.base import Encoder
from avrec.towers.fusion import Fusion


class Standardise(nn.Module):
    """Centre and scale each feature by numbers that were measured once, before training.

    A fresh encoder gives all items nearly the same vector; what differs between them drowns in what does not. Data
    dependent initialisation (Krähenbühl et al. 2016) takes that common part away at the start, and unlike batch
    normalisation it leaves each item's vector independent of its batch.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, values: Float[Tensor, "n width"]) -> None:
        """Measure; features that do not vary are only centred."""
        spread = values.std(0, unbiased=False)
        self.mean.copy_(values.mean(0))
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), torch.ones_like(spread)))

    def forward(self, values: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """Centred and scaled."""
        return (values - self.mean) * self.scale


def _start_at_principal_axes(linear: nn.Linear, values: Tensor) -> None:
    """Make the projection keep the distances between ``values`` as well as its width allows.

    A random projection to D adds noise of 1 / sqrt(D) to every cosine, which drowns what a pretrained encoder knows.
    The axes are turned at random, so that no modality's first axis meets another's, and all outputs vary alike.
    """
    axes = torch.linalg.svd(values, full_matrices=False).Vh[: linear.out_features]
    turn = nn.init.orthogonal_(linear.weight.new_empty(linear.out_features, len(axes)))
    linear.weight.copy_(turn @ axes)
    nn.init.zeros_(linear.bias)


class ItemTower(nn.Module):
    """Encoders of the modalities, projected to D, fused to one vector.

    Modality encoder → projection to D → modality dropout (per item, never the last one present) → fusion →
    optional L2 norm. A modality that an item lacks contributes nothing, and its encoder does not run for it.

    Args:
        encoders: by modality; those that are None are left out.
        fusion: makes a fusion of (modalities, dim).
        dim: D.
        modality_dropout: probability that a present modality of an item is hidden in a training step.
        normalize: L2-normalise the vector.

    Raises:
        UserError: there is no encoder, or one of an unknown modality.
    """

    @checked
    def __init__(
        self,
        encoders: Mapping[str, Encoder | None],
        fusion: Callable[[int, int], Fusion],
        dim: Count = 64,
        modality_dropout: Rate = 0.1,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        chosen = {name: encoder for name in MODALITIES if (encoder := encoders.get(name)) is not None}
        unknown = set(encoders) - set(MODALITIES)
        if unknown or not chosen:
            given = f"unknown modalities {sorted(unknown)}" if unknown else "no encoder"
            raise UserError(f"The item tower was given {given}. It needs one or more of {', '.join(MODALITIES)}.")
        for encoder in chosen.values():
            encoder.check()
        self.encoders = nn.ModuleDict(chosen)
        self.project = nn.ModuleDict()
        for name, encoder in chosen.items():
            width = encoder.out_dim
            self.project[name] = nn.Sequential(Standardise(width), nn.Linear(width, dim), nn.LayerNorm(dim))
        self.fusion = fusion(len(chosen), dim)
        if not isinstance(self.fusion, Fusion):
            raise TypeError(f"{type(self.fusion).__name__} must extend {Fusion.__module__}.Fusion")
        self.dim = dim
        self.modality_dropout = modality_dropout
        self.normalize = normalize

    @property
    def modalities(self) -> list[str]:
        """The modalities that this tower reads, in the order of ``present_UM``'s columns."""
        return list(self.encoders)

    def parts(self) -> dict[str, tuple[Any, Any]]:
        """By modality, what makes its content and the layers that are frozen: what ``TwoTowerData.prepare`` reads."""
        encoders: Iterable[tuple[str, Any]] = self.encoders.items()
        return {name: (encoder.preprocess, encoder.frozen_layers()) for name, encoder in encoders}

    def copy(self) -> "ItemTower":
        """A copy that shares each encoder's preprocess: a tokenizer is learned, or comes with weights, for both."""
        encoders: Iterable[Any] = self.encoders.values()
        return copy.deepcopy(self, {id(encoder.preprocess): encoder.preprocess for encoder in encoders})

    def forward(self, items: ItemBatch) -> Float[Tensor, "U D"]:
        """Embed U items, whose ``present_UM`` has one column for each of this tower's modalities."""
        return self.fuse(self.encode(items), self._dropped(items.present_UM))

    def encode(self, items: ItemBatch) -> Float[Tensor, "U M D"]:
        """Projected values of each modality; zeros where it is not present."""
        columns: dict[str, Tensor] = {}
        for name, present_U in zip(self.encoders, items.present_UM.unbind(1), strict=True):
            if name in items.content:
                values = self.project[name](self.encoders[name](items.content[name]))
                zeros = values.new_zeros(len(items), self.dim)
                columns[name] = zeros.index_put((present_U.nonzero().squeeze(1),), values)
        blank = torch.zeros_like(next(iter(columns.values()), next(self.parameters()).new_zeros(len(items), self.dim)))
        return torch.stack([columns.get(name, blank).to(blank.dtype) for name in self.encoders], dim=1)

    @torch.no_grad()
    def standardise(self, items: ItemBatch) -> None:
        """Measure the encoders' outputs on some items, before training, and start the projections from them.

        See ``Standardise``. The projection of a pretrained encoder starts as the principal axes of what was measured,
        turned at random; those of a fresh encoder would say nothing.
        """
        training = self.training
        self.eval()
        for name, content in items.content.items():
            values = self.encoders[name](content)
            standardise, linear = self.project[name][:2]  # type: ignore[index]
            standardise.fit(values)
            if self.encoders[name].pretrained:
                _start_at_principal_axes(linear, standardise(values))
        self.train(training)

    @torch.no_grad()
    def encode_alone(self, batches: Iterable[ItemBatch]) -> dict[str, tuple[Tensor, Array]]:
        """What each encoder of content says by itself, before projection, of a whole catalogue in order.

        Returns:
            By modality that is content: values (N, width) on the CPU, zeros where not present, and ``present_N``.
        """
        training, device = self.training, next(self.parameters()).device
        self.eval()
        parts: dict[str, list[Tensor]] = {name: [] for name, e in self.encoders.items() if e.reads != "index"}
        present = []
        for batch in batches:
            present.append(batch.present_UM)
            for name in parts.keys() & batch.content.keys():
                parts[name].append(self.encoders[name](batch.to(device).content[name]).float().cpu())
        self.train(training)
        found = {}
        for name, present_N in zip(self.encoders, torch.cat(present).unbind(1), strict=True):
            if parts.get(name):
                values = torch.cat(parts[name])
                all_Nx = values.new_zeros(len(present_N), values.shape[1])
                all_Nx[present_N] = values
                found[name] = all_Nx, present_N.numpy()
        return found

    def fuse(self, values_UMD: Float[Tensor, "U M D"], present_UM: Bool[Tensor, "U M"]) -> Float[Tensor, "U D"]:
        """Fusion and norm."""
        item_UD = self.fusion(values_UMD, present_UM)
        return nn.functional.normalize(item_UD, dim=-1) if self.normalize else item_UD

    def _dropped(self, present_UM: Tensor) -> Tensor:
        """Hide modalities at random, per item; an item that would lose all keeps one of its own at random."""
        if not self.training or self.modality_dropout == 0:
            return present_UM
        draw_UM = torch.rand(present_UM.shape, device=present_UM.device)
        kept_UM = present_UM & (draw_UM >= self.modality_dropout)
        spared_UM = torch.zeros_like(present_UM).scatter_(1, draw_UM.masked_fill(~present_UM, -1).argmax(1, True), True)
        return torch.where(kept_UM.any(1, keepdim=True), kept_UM, spared_UM & present_UM)
