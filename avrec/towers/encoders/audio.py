"""Audio encoder: torchaudio's log-mel front end, a small transformer over it, pooled over time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.compiler import is_exporting

from avrec.batch import Array
from avrec.checked import Count, Positive, Whole, checked
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.preprocess import ArraySpec
from avrec.towers.encoders.base import Encoder, cut_of


@dataclass
class AudioPreprocess:
    """Sound to ``log_mel`` (S, mels) float16 and ``length`` (spectrogram frames that hold sound).

    The log-mel front end is torchaudio's; it stands in this class alone. Each item is centred on its own mean
    level, so that loudness does not speak. See ``AudioEncoder``; ``window`` is the samples of one Fourier transform.
    """

    modality = "audio"
    sample_rate: int = 16000
    seconds: float = 10.0
    mels: int = 64
    hop: int = 512
    window: int = 1024

    def fit(self, items: list[RawItem]) -> None:
        """Nothing is learned."""

    def settings(self) -> dict[str, Any]:
        """Arguments."""
        return dict(vars(self))

    def request(self) -> DecodeRequest:
        """Mono sound at the front end's rate."""
        return DecodeRequest(sample_rate=self.sample_rate, max_seconds=self.seconds)

    def arrays(self) -> dict[str, ArraySpec]:
        """Shapes of the stored arrays."""
        longest = int(self.seconds * self.sample_rate) // self.hop + 1
        return {"log_mel": ArraySpec((longest, self.mels), "float16"), "length": ArraySpec((), "int32")}

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        """The item's spectrogram, or None where it has no sound."""
        if decoded.sound is None or len(decoded.sound) == 0:
            return None
        import torchaudio  # here: a network that reads stored spectrograms needs none of it

        spectrogram = torchaudio.transforms.MelSpectrogram(
            self.sample_rate, n_fft=self.window, hop_length=self.hop, n_mels=self.mels, power=2.0
        )
        sound = torch.from_numpy(np.ascontiguousarray(decoded.sound, dtype=np.float32))
        sound = torch.nn.functional.pad(sound, (0, max(0, self.window - len(sound))))
        log_mel = (spectrogram(sound) + 1e-6).log().T.numpy()
        log_mel = (log_mel - log_mel.mean()) / 4.0
        longest = self.arrays()["log_mel"].shape[0]
        length = min(len(log_mel), longest)
        stored = np.zeros((longest, self.mels), np.float16)
        stored[:length] = log_mel[:length]
        return {"log_mel": stored, "length": np.asarray(length, np.int32)}


class AudioEncoder(Encoder):
    """A small transformer over log-mel frames, with random weights, trained from the first layer on.

    Two strided convolutions take four spectrogram frames into one step; the steps are pooled by their mean and
    their maximum, so that both what lasts and what strikes once is kept. What lies beyond a sound's end is
    masked at every layer: a vector does not depend on the batch that it was computed in.

    Args:
        sample_rate: Hz.
        seconds: sound beyond it is not read.
        mels: mel bands.
        hop: samples between two spectrogram frames.
        width: of the transformer.
        depth: its layers.
        heads: its attention heads.
        trainable_layers: ``all``, ``none`` or the number of upper layers that are trained.
    """

    modality = "audio"

    @checked
    def __init__(
        self,
        sample_rate: Count = 16000,
        seconds: Positive = 10.0,
        mels: Count = 64,
        hop: Count = 512,
        width: Count = 64,
        depth: Whole = 2,
        heads: Count = 4,
        trainable_layers: str | int = "all",
    ) -> None:
        super().__init__()
        self.preprocess: AudioPreprocess = AudioPreprocess(sample_rate, seconds, mels, hop)
        self.width = width
        self.out_dim = 2 * width
        self.depth = depth
        self.convolutions = nn.ModuleList(nn.Conv1d(w, width, 5, stride=2, padding=2) for w in (mels, width))
        longest = self.preprocess.arrays()["log_mel"].shape[0]
        self.position = nn.Embedding(int(_halved(_halved(torch.tensor(longest)))), width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.cut = cut_of(trainable_layers, depth, "audio")
        self.freeze_lower()

    def lower_modules(self) -> list[nn.Module]:
        """The convolutions and the layers below the cut."""
        return [] if self.cut is None else [self.convolutions, self.position, *self.layers[: self.cut]]

    def lower(self, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """The features at the cut."""
        features, present_nS = self._stem(content["log_mel"], content["length"])
        return {"features": self._run(features, present_nS, 0, self.cut), "length": content["length"]}

    def lower_arrays(self) -> dict[str, ArraySpec]:
        """Shapes of what ``lower`` returns."""
        features = ArraySpec((self.position.num_embeddings, self.width), "float32")
        return {"features": features, "length": self.preprocess.arrays()["length"]}

    def forward(self, content: dict[str, Tensor]) -> Float[Tensor, "n width"]:
        """Encode n sounds; time beyond the longest of the batch is not computed."""
        length_n = content["length"].long()
        if "features" in content:
            steps = int(_halved(_halved(length_n)).max())
            features, first = content["features"][:, :steps], self.cut
            present_nS = _within(_halved(_halved(length_n)), steps)
        else:
            # A graph for export has no shapes that depend on what it is given.
            longest = content["log_mel"].shape[1] if is_exporting() else int(length_n.max())
            (features, present_nS), first = self._stem(content["log_mel"][:, :longest], length_n), 0
        features = self.norm(self._run(features, present_nS, first, self.depth))
        mask = present_nS.unsqueeze(-1)
        mean = (features * mask).sum(1) / mask.sum(1)
        return torch.cat([mean, features.masked_fill(~mask, float("-inf")).amax(1)], dim=1)

    def _stem(
        self, log_mel_nSm: Tensor, length_n: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n S width"], Bool[Tensor, "n S"]]:
        features_nwS = _cut(log_mel_nSm.to(self.norm.weight.dtype).transpose(1, 2), length_n)
        for convolution in self.convolutions:
            length_n = _halved(length_n)
            features_nwS = _cut(nn.functional.gelu(convolution(features_nwS)), length_n)
        features_nSw = features_nwS.transpose(1, 2)
        steps = features_nSw.shape[1]
        return features_nSw + self.position.weight[:steps], _within(length_n, steps)

    def _run(self, features_nSw: Tensor, present_nS: Tensor, first: int | None, last: int | None) -> Tensor:
        for layer in self.layers[first:last]:
            features_nSw = layer(features_nSw, src_key_padding_mask=~present_nS)
        return features_nSw

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Array]:
        """Random spectrograms, each of a length of its own."""
        content = super().sample(count, rng)
        return {**content, "length": rng.integers(1, content["log_mel"].shape[1] + 1, count, np.int32)}

    def filled(self, content: dict[str, Tensor], absent_U1: Tensor) -> dict[str, Tensor]:
        """A first frame for every item."""
        return {**content, "length": content["length"].clamp(min=1)}

    def limit(self) -> str:
        """Seconds."""
        return f"up to {self.preprocess.seconds} seconds"


def _halved(length: Tensor) -> Tensor:
    """Steps that a convolution of stride 2 with half-kernel padding makes of ``length`` steps."""
    return (length + 1) // 2


def _cut(features_nwS: Tensor, length_n: Tensor) -> Tensor:
    """Zeros beyond the sound's end, as beyond the edge of a convolution."""
    return features_nwS * _within(length_n, features_nwS.shape[2]).unsqueeze(1)


def _within(length_n: Tensor, steps: int) -> Tensor:
    """(n, steps): True where the step lies before the sound's end."""
    return torch.arange(steps, device=length_n.device) < length_n.unsqueeze(1)
