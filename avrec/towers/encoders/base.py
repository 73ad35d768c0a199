"""What all encoders share: the seam between preprocess and network, and the cut below which layers are frozen."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avrec.batch import Array
from avrec.content.preprocess import ArraySpec, ContentTable, Preprocess
from avrec.errors import UserError


class Encoder(nn.Module, ABC):
    """One modality's network: content of n items in, one vector for each out.

    Attributes:
        modality: which of ``avrec.batch.MODALITIES`` it reads.
        preprocess: the half that runs once per item, the table where its output lies ready, or None where the
            content is only an index.
        out_dim: width of the vectors.
        pretrained: True where the weights come from elsewhere; such weights get their own learning rate.
        cut: layers below this number (the stem included) are frozen; None: every layer is trained.
        depth: number of layers.
    """

    modality: str
    preprocess: Preprocess | ContentTable | None
    out_dim: int
    pretrained: bool = False
    cut: int | None = None
    depth: int = 0

    @abstractmethod
    def forward(self, content: dict[str, Tensor]) -> Tensor:
        """Encode n items, to (n, out_dim), from what ``preprocess`` or, where layers are frozen, ``lower`` made."""

    def lower(self, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """The frozen layers' output for preprocessed content, in the arrays of ``lower_arrays``."""
        raise TypeError(f"{type(self).__name__} has no frozen layers: every layer of it is trained")

    def lower_arrays(self) -> dict[str, ArraySpec]:
        """Names, shapes and dtypes of what ``lower`` returns."""
        raise TypeError(f"{type(self).__name__} has no frozen layers: every layer of it is trained")

    def lower_modules(self) -> list[nn.Module]:
        """The modules below the cut."""
        return []

    def export_config(self) -> dict[str, Any]:
        """Constructor arguments that rebuild this network with no weights file, as JSON-able values."""
        return {}

    def freeze_lower(self) -> None:
        """Stop gradients and statistics below the cut."""
        for module in self.lower_modules():
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Training mode for what is trained; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.lower_modules():
            module.eval()
        return self

    def frozen_layers(self) -> "FrozenEncoderLayers | None":
        """The layers below the cut as data sees them, or None where there are none."""
        return None if self.cut is None else FrozenEncoderLayers(self)


class FrozenEncoderLayers:
    """An encoder's frozen layers as a function of arrays (``avrec.batch.FrozenLayers``)."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def settings(self) -> dict[str, Any]:
        """The cut and a hash of the frozen weights."""
        digest = hashlib.sha256()
        for module in self.encoder.lower_modules():
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return {"cut": self.encoder.cut, "weights": digest.hexdigest()}

    def arrays(self) -> dict[str, ArraySpec]:
        """Names, shapes and dtypes of the stored output."""
        return self.encoder.lower_arrays()

    @torch.no_grad()
    def __call__(self, content: dict[str, Array]) -> dict[str, Array]:
        """The frozen layers' output of a batch of items."""
        self.encoder.eval()
        device = next(self.encoder.parameters()).device
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)).to(device) for name, a in content.items()}
        return {name: tensor.cpu().numpy() for name, tensor in self.encoder.lower(tensors).items()}


def cut_of(trainable_layers: str | int, depth: int, what: str) -> int | None:
    """The layer below which ``what`` is frozen: None for ``all``, ``depth`` for ``none``, ``depth - k`` for k."""
    if trainable_layers == "all":
        return None
    if trainable_layers == "none":
        return depth
    if isinstance(trainable_layers, int) and 0 < trainable_layers <= depth:
        return depth - trainable_layers
    raise UserError(
        f"{what}.trainable_layers={trainable_layers} is not possible: this network has {depth} layers. "
        f"Give 'all', 'none' or a number from 1 to {depth}."
    )


@contextmanager
def not_imported(name: str) -> Iterator[None]:
    """What is imported in this block goes without an optional package, as if it were not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def masked_mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean over axis 1 of ``values`` (n, X, D) where ``present`` (n, X) is True; zeros where none is."""
    weight = present.to(values.dtype).unsqueeze(-1)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)
