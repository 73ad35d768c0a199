"""What all encoders share: the seam between preprocess and network, and the cut below which layers are frozen."""

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avrec.batch import MODALITIES, Array
from avrec.content.preprocess import ArraySpec, ContentTable, Preprocess
from avrec.errors import UserError
from avrec.towers.rebuildable import Rebuildable


class Encoder(Rebuildable, ABC):
    """One modality's network: content of n items in, one vector for each out.

    A constructor sets ``preprocess`` and ``out_dim``; ``modality`` is set there or in the class. Its arguments are
    recorded (``options``), which is how an exported tower is rebuilt.

    Attributes:
        reads: where content comes from. ``files``: from an item's text and media, by ``preprocess``; ``index``: it is
            the item's number (the constructor takes ``num_items``); ``table``: a matrix that somebody else computed
            (the constructor takes ``root``, the catalogue's folder).
        modality: which of ``avrec.batch.MODALITIES`` it reads.
        preprocess: the half that runs once per item; the table where ``reads`` is ``table``; None where the network
            reads an index, or is loaded from an exported folder and given each item's vector.
        out_dim: width of the vectors.
        pretrained: True where the weights of ``self.network`` come from elsewhere; they get their own learning rate.
        cut: layers below this number (the stem included) are frozen; None: every layer is trained.
        depth: number of layers.
    """

    reads: ClassVar[Literal["files", "index", "table"]] = "files"
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

    def arrays(self) -> dict[str, ArraySpec]:
        """Names, shapes and dtypes of the content that ``forward`` reads."""
        return self.preprocess.arrays()  # type: ignore[union-attr]

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Array]:
        """Random content of ``count`` items, for tests of exported programs; override it where some is invalid."""
        return {name: random_array(spec, count, rng) for name, spec in self.arrays().items()}

    def filled(self, content: dict[str, Tensor], absent_U1: Tensor) -> dict[str, Tensor]:
        """Content where the items without this modality have something: a mask that hides all of an item gives NaN."""
        return content

    def limit(self) -> str:
        """How much is read of an item ("up to 64 tokens"), for the model card; empty: all."""
        return ""

    def save_preprocess(self, folder: Path) -> dict[str, Any] | None:
        """What ``preprocess`` is made of, as JSON-able values; None: files written to ``folder`` say it, or nothing."""
        return None if self.preprocess is None else dict(vars(self.preprocess))

    def load_preprocess(self, folder: Path, settings: Mapping[str, Any] | None) -> None:
        """Take over what ``save_preprocess`` returned, or the files that it wrote."""
        if settings:
            vars(self.preprocess).update(settings)

    def check(self) -> None:
        """Complain of a class that does not offer what an encoder must.

        Raises:
            TypeError: says which attribute is missing.
        """
        name = type(self).__name__
        if missing := [key for key in ("modality", "preprocess", "out_dim") if not hasattr(self, key)]:
            raise TypeError(
                f"{name} must set {', '.join(missing)} in its class or constructor (see {__name__}.Encoder)"
            )
        if self.modality not in MODALITIES:
            raise TypeError(f"{name}.modality must be one of {', '.join(MODALITIES)}; it is {self.modality!r}")
        if self.pretrained and not isinstance(getattr(self, "network", None), nn.Module):
            raise TypeError(f"{name}.network must be the module with the pretrained weights")

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
        f"{what}.trainable_layers must be all, none or a number from 1 to {depth}, the layers of this network; "
        f"got {trainable_layers}."
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


def random_array(spec: ArraySpec, count: int, rng: np.random.Generator) -> Array:
    """Random values of ``count`` items; of a mask, at least one of each row is True."""
    shape = (count, *spec.shape)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape, np.float32)
    if spec.dtype == "bool":
        drawn = rng.random(shape)
        return drawn >= np.minimum(drawn.max(1, keepdims=True), 0.5)
    return rng.integers(256, size=shape).astype(spec.dtype)


def masked_mean(values: Tensor, present: Tensor) -> Tensor:
    """Mean over axis 1 of ``values`` (n, X, D) where ``present`` (n, X) is True; zeros where none is."""
    weight = present.to(values.dtype).unsqueeze(-1)
    return (values * weight).sum(1) / weight.sum(1).clamp(min=1)
