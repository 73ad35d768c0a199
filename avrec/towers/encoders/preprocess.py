"""The encoders' first halves: decoded media to arrays of fixed shape, once per item, in worker processes.

torch, torchaudio and transformers are imported where they are used: a worker that cuts pictures to size needs
none of them, and importing them would take it longer than its work.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from avrec.batch import Array
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.preprocess import ArraySpec
from avrec.errors import UserError

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


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
            raise UserError(f"vision.fit_mode={self.fit_mode} is not known. Give 'squash' or 'crop'.")
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
        from PIL import Image

        image = Image.fromarray(picture)
        if self.fit_mode == "crop":
            edge = min(image.size)
            left, top = (image.width - edge) // 2, (image.height - edge) // 2
            image = image.crop((left, top, left + edge, top + edge))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)


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
        import torch
        import torchaudio

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


class TextPreprocess:
    """Text to ``tokens`` (T,) int32, cut at T and padded with the tokenizer's padding token.

    Where no ``tokenizer`` is given, ``fit`` learns a byte-level BPE vocabulary of ``vocab_size`` from the catalogue.

    Raises:
        UserError: the vocabulary has no room for the 256 bytes.
    """

    modality = "text"

    def __init__(self, max_tokens: int = 64, vocab_size: int = 4096, tokenizer: Any = None) -> None:
        if tokenizer is None and vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"text.vocab_size={vocab_size} has no room for the 256 bytes and {len(SPECIAL_TOKENS)} special tokens. "
                f"Give {SMALLEST_VOCABULARY} or more."
            )
        self.max_tokens = max_tokens
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.learned = tokenizer is None

    def fit(self, items: list[RawItem]) -> None:
        """Learn a byte-level BPE tokenizer from the catalogue, where none was given or learned before."""
        if self.tokenizer is None:
            self.tokenizer = learn_tokenizer(sorted(item.text for item in items if item.text), self.vocab_size)

    def settings(self) -> dict[str, Any]:
        """The cut-off and a hash of the tokenizer."""
        digest = hashlib.sha256(self.tokenizer_json().encode()).hexdigest()
        return {"max_tokens": self.max_tokens, "tokenizer": digest}

    def tokenizer_json(self) -> str:
        """The tokenizer as one JSON text, equal for equal tokenizers."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # Calling a tokenizer writes the last call's padding and truncation into it.
        backend.update(padding=None, truncation=None)
        return json.dumps(backend, sort_keys=True)

    def request(self) -> DecodeRequest:
        """The text."""
        return DecodeRequest(text=True)

    def arrays(self) -> dict[str, ArraySpec]:
        """Shapes of the stored arrays."""
        return {"tokens": ArraySpec((self.max_tokens,), "int32")}

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        """The item's tokens, or None where it has no text."""
        if not decoded.text or not decoded.text.strip():
            return None
        tokens = self.tokenizer(decoded.text, truncation=True, max_length=self.max_tokens)["input_ids"]
        # A text may spell the padding token out; padding stands at the end alone.
        tokens = [token for token in tokens if token != self.tokenizer.pad_token_id]
        stored = np.full(self.max_tokens, self.tokenizer.pad_token_id, np.int32)
        stored[: len(tokens)] = tokens
        return {"tokens": stored} if tokens else None


def learn_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A lower-casing byte-level BPE tokenizer (any text can be written in it) of at most ``vocab_size`` tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer_of(tokenizer.to_str())


def tokenizer_of(text: str) -> Any:
    """The transformers tokenizer of ``TextPreprocess.tokenizer_json`` made by ``learn_tokenizer``."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **SPECIAL_TOKENS)
