"""Item towers as files: what a stranger needs to embed an item that nobody has seen, and nothing else.

A folder holds ``config.json`` (how the network is built), ``model.safetensors``, ``preprocessor_config.json``,
``item_ids.json`` (whose identity vectors the table holds), the tokenizer's own files and a model card, README.md.
Loading reads JSON and safetensors only: nothing is unpickled, and no code is imported because a file names it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from avrec.batch import Array, ItemBatch
from avrec.content.decode import decode
from avrec.content.items import RawItem, TextFields
from avrec.errors import UserError
from avrec.export.card import write_card
from avrec.export.classes import builder, name_of, options_of
from avrec.export.folder import FORMAT, Folder, export_folder, write_weights
from avrec.export.item_graph import dense
from avrec.io import write_json
from avrec.towers.encoders.base import Encoder
from avrec.towers.fusion import Fusion
from avrec.towers.item_tower import ItemTower


def export_item_tower(
    tower: ItemTower,
    folder: str | Path,
    item_ids: Sequence[str],
    trained_N: Array,
    text: TextFields = TextFields(),  # noqa: B008
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Write an item tower as files.

    The folder appears complete or not at all; an exported tower that is there is replaced.

    Args:
        tower: the trained tower, its tokenizer learned.
        folder: where to.
        item_ids: the catalogue's item ids, in order.
        trained_N: True where the item has an identity vector of its own.
        text: what the items' text is made from.
        finish: writes more into the folder before it appears; None: a card that tells nothing of the run.

    Raises:
        UserError: ``folder`` is there and is no exported tower.
    """
    folder = Path(folder)
    with export_folder(folder) as beside:
        _fill(tower, beside, item_ids, trained_N, text)
        (finish or write_card)(beside)
    return folder


def _fill(tower: ItemTower, folder: Path, item_ids: Sequence[str], trained_N: Array, text: TextFields) -> None:
    encoders: dict[str, Encoder] = dict(tower.encoders.items())  # type: ignore[arg-type]
    config = {
        "format": FORMAT,
        "model_type": "avrec_item_tower",
        "dim": tower.dim,
        "normalize": tower.normalize,
        "modality_dropout": tower.modality_dropout,
        "fusion": {"name": name_of(type(tower.fusion)), "options": options_of(tower.fusion)},
        "encoders": {name: {"kind": name_of(type(e)), **options_of(e)} for name, e in encoders.items()},
        "text": {"columns": list(text.columns), "template": text.template},
    }
    preprocess = {name: encoder.save_preprocess(folder) for name, encoder in encoders.items()}
    kept = {name: given for name, given in preprocess.items() if given is not None}
    write_json(folder / "config.json", config, readable=True)
    write_json(folder / "preprocessor_config.json", kept, readable=True)
    if any(encoder.reads == "index" for encoder in encoders.values()):
        rows = {item_ids[index]: index + 1 for index in np.flatnonzero(trained_N).tolist()}
        write_json(folder / "item_ids.json", rows, readable=True)
    write_weights(folder, tower.state_dict())


class ExportedItemTower:
    """An item tower with all that it takes to embed an item from its raw text and files.

    Attributes:
        tower: the network, in evaluation mode.
        rows: item id → row of the identity table; empty where the tower reads no identity.
        text: what a mapping's text is made from.
        dim: D.
    """

    def __init__(self, tower: ItemTower, rows: Mapping[str, int], text: TextFields) -> None:
        self.tower = tower.eval()
        self.rows = dict(rows)
        self.text = text
        self.dim = tower.dim

    def embed(
        self, items: Sequence[Mapping[str, Any] | RawItem], batch_size: int = 64, skip_broken: bool = False
    ) -> Array:
        """Embed items from their raw text and files.

        Args:
            items: each a mapping with any of ``item_id``, the text columns (or ``text``), ``image``, ``video``,
                ``audio`` (paths), or a ``RawItem``. An ``item_id`` of the catalogue brings the identity vector.
                Where the tower was trained on a feature matrix, ``text_features`` (``vision_``, ``audio_``) is the
                item's vector of that kind.
            batch_size: items encoded at once; it does not change the vectors.
            skip_broken: go on without a file that cannot be decoded, instead of raising.

        Returns:
            Item embeddings, float32 (n, D): their dot product with a query is the score, up to the bias.

        Raises:
            UserError: an item has nothing that this tower reads, an unknown key, or a file cannot be decoded.
        """
        raw = self._raw_items(items)
        if batch_size < 1:
            raise UserError(f"batch_size must be a whole number from 1; got {batch_size}.")
        parts = [self._embed(raw[start : start + batch_size], skip_broken) for start in range(0, len(raw), batch_size)]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *parts])

    def inputs(self, items: Sequence[Mapping[str, Any] | RawItem], skip_broken: bool = False) -> dict[str, Array]:
        """What ``onnx/model.onnx`` and ``model.pt2`` take for these items, in place of embedding them here.

        Args:
            items: as for ``embed``.
            skip_broken: as for ``embed``.

        Returns:
            Arrays by input name, first axis n.

        Raises:
            UserError: as for ``embed``.
        """
        batch = self._batch(self._raw_items(items), skip_broken)
        return {name: tensor.numpy() for name, tensor in dense(self.tower, batch).items()}

    def _raw_items(self, items: Sequence[Mapping[str, Any] | RawItem]) -> list[RawItem]:
        if isinstance(items, Mapping | RawItem):
            raise UserError("embed takes a list of items, and was given one item. Use [item].")
        return [item if isinstance(item, RawItem) else self._raw(item) for item in items]

    def _raw(self, item: Mapping[str, Any]) -> RawItem:
        vectors = {f"{name}_features": name for name, e in self.tower.encoders.items() if e.reads == "table"}
        known = {"item_id", "text", "image", "video", "audio", *self.text.columns, *vectors}
        unknown = set(item) - known
        if unknown:
            raise UserError(
                f"An item has the keys {sorted(unknown)}, which this tower does not read. It reads {sorted(known)}."
            )
        text = item.get("text") or self.text.of(item)
        files = {kind: item[kind] for kind in ("image", "video", "audio") if item.get(kind)}
        for kind, path in files.items():
            if not isinstance(path, str | Path):
                raise UserError(f"An item's {kind} is a {type(path).__name__}. Use the path of a file.")
            files[kind] = Path(path).expanduser().resolve()
        features = {name: item[key] for key, name in vectors.items() if item.get(key) is not None}
        return RawItem(str(item.get("item_id") or ""), text, features=features, **files)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, modalities={self.tower.modalities}, text={self.text.columns})"

    @torch.no_grad()
    def _embed(self, items: list[RawItem], skip_broken: bool) -> Array:
        batch = self._batch(items, skip_broken).to(next(self.tower.parameters()).device)
        return self.tower(batch).float().cpu().numpy()

    def _batch(self, items: list[RawItem], skip_broken: bool) -> ItemBatch:
        present_UM = torch.zeros(len(items), len(self.tower.modalities), dtype=torch.bool)
        content: dict[str, dict[str, torch.Tensor]] = {}
        for m, name in enumerate(self.tower.modalities):
            rows = [self._content(name, item, skip_broken) for item in items]
            present_UM[:, m] = torch.tensor([row is not None for row in rows])
            having = [row for row in rows if row is not None]
            if having:
                content[name] = {key: torch.from_numpy(np.stack([row[key] for row in having])) for key in having[0]}
        told_UM = present_UM.clone()
        for m, (name, encoder) in enumerate(self.tower.encoders.items()):
            if encoder.reads == "index" and name in content:  # of an item that was never seen it tells nothing
                told_UM[:, m] = content[name]["row"] > 0
        empty = (~told_UM.any(1)).nonzero().flatten().tolist()
        if empty:
            raise UserError(
                f"Item {items[empty[0]].item_id or empty[0]!r} has nothing that this tower reads. "
                f"It reads {', '.join(self.tower.modalities)}; give at least one of them."
            )
        return ItemBatch(torch.arange(len(items)), present_UM, content)

    def _content(self, modality: str, item: RawItem, skip_broken: bool) -> dict[str, Array] | None:
        encoder: Any = self.tower.encoders[modality]
        if encoder.reads == "table":
            vector = item.features.get(modality)
            return None if vector is None else encoder.content_of(vector, item.item_id)
        if encoder.reads == "index":
            return {"row": np.asarray(self.rows.get(item.item_id, 0), np.int64)}
        decoded = decode(item, encoder.preprocess.request())
        if decoded.failures and not skip_broken:
            failure = decoded.failures[0]
            raise UserError(
                f"{failure.path} of item {item.item_id!r} could not be decoded: it {failure.reason}. "
                "Mend the file, or give skip_broken=True to go on without it."
            )
        content: dict[str, Array] | None = encoder.preprocess(decoded)
        return content


def load_item_tower(
    folder: str | Path, device: str = "cpu", classes: Sequence[type[nn.Module]] = ()
) -> ExportedItemTower:
    """Load an exported item tower.

    Args:
        folder: what ``export_item_tower`` wrote.
        device: where the network runs.
        classes: encoders and fusions of your own that it may be built of; those that the folder does not name are
            left aside.

    Raises:
        UserError: the folder is not an exported item tower, is damaged, of another format, or names a class that is
            not given; the device is not there.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: torch was built without it
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device={device} cannot be used: {reason}. Use device=cpu, or one that is there.") from error
    files, build = Folder(folder, "item_tower"), builder(folder, classes, "load_item_tower")
    config = files.config()
    with files.reading():
        kept, encoders = files.json("preprocessor_config.json"), {}
        for modality, given in config["encoders"].items():
            # Exports from before encoders had kinds name none: there was one kind to a modality.
            encoder = build(given.pop("kind", modality), given, Encoder)
            encoder.load_preprocess(files.path, kept.get(modality))
            encoders[modality] = encoder
        if strange := kept.keys() - encoders:
            raise ValueError(f"preprocessor_config.json has {sorted(strange)[0]!r}, and config.json no such encoder")
        fusion = partial(build, config["fusion"]["name"], config["fusion"]["options"], Fusion)
        tower = ItemTower(
            encoders,
            lambda modalities, dim: fusion(modalities=modalities, dim=dim),
            config["dim"],
            config["modality_dropout"],
            config["normalize"],
        )
        files.fill(tower)
        rows: dict[str, int] = {}
        for encoder in encoders.values():
            if encoder.reads == "index":
                rows = files.rows("item_ids.json", encoder.options()["num_items"])
        return ExportedItemTower(tower.to(device), rows, TextFields(**config["text"]))
