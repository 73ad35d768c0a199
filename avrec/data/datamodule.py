"""The LightningDataModule: from a source to batches."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from avrec.batch import Array, ItemBatch, UserBatch
from avrec.checked import Count, Seed, Whole, checked
from avrec.content.preprocess import ContentTable, FrozenLayers, PreparedContent, Preprocess
from avrec.data.collate import Identity, ItemBatches, TrainBatches, UserBatches
from avrec.data.held_out import history_rows, ranking_task
from avrec.data.splits import TRAIN, Splitter
from avrec.data.tables import Catalogue
from avrec.data.windows import Sequences, WindowSampler
from avrec.errors import UserError
from avrec.ranking_task import RankingTask

Parts = Mapping[str, tuple[Preprocess | ContentTable | None, FrozenLayers | None]]
"""By modality: what makes or holds its content (None: its content is the item's number), and frozen layers."""


class HasParts(Protocol):
    """What an item tower says of the content that it reads."""

    def parts(self) -> Parts:
        """By modality, see ``Parts``."""


class TwoTowerData(pl.LightningDataModule):
    """Batches of distinct items and windows, for training; the catalogue and the users asked for, for ranking.

    Args:
        catalogue: what a source loaded.
        splitter: assigns interactions to train, val and test.
        prepare: ``avrec.content.prepare.prepare_content`` with its cache and limits filled in.
        users_per_batch: B.
        history_length: L.
        seen_filter: leave history items out of rankings.
        seed: of the order of windows.
        loader_workers: processes that make training batches; 0: the training process itself.

    Raises:
        UserError: a number out of range, or a split without users.
    """

    ITEMS_PER_BATCH = 256
    USERS_PER_BATCH = 512

    @checked
    def __init__(
        self,
        catalogue: Catalogue,
        splitter: Splitter,
        prepare: Callable[..., PreparedContent],
        users_per_batch: Count = 64,
        history_length: Count = 50,
        seen_filter: bool = True,
        seed: Seed = 0,
        loader_workers: Whole = 0,
    ) -> None:
        super().__init__()
        self.catalogue = catalogue
        self.prepare_content = prepare
        self.users_per_batch = users_per_batch
        self.history_length = history_length
        self.seed = seed
        self.loader_workers = loader_workers
        self.split = splitter(catalogue)
        num_items = len(catalogue.items)
        self.tasks: dict[str, RankingTask] = {
            name: ranking_task(catalogue.log, self.split, name, num_items, seen_filter) for name in ("val", "test")
        }
        for name, task in self.tasks.items():
            if not len(task):
                raise UserError(
                    f"The {name} split has no user to ask for: the log has {len(catalogue.log)} interactions of "
                    f"{len(catalogue.user_ids)} users. Use more interactions, or another split."
                )
        if not (self.split.role == TRAIN).any():
            raise UserError(
                f"The split leaves none of the {len(catalogue.log)} interactions for training. Use smaller shares of "
                "validation and test, or another split."
            )
        self.train_sequences = self._sequences(self.split.role == TRAIN)
        self.trained_N = ~self.tasks["val"].cold_N
        self.parts: Parts = {}
        self._items: ItemBatches | None = None
        self.loader: ResumableLoader | None = None
        self.place: dict[str, Any] = {}
        self.users = UserBatches(catalogue, self.train_sequences.lengths() > 0, history_length)

    def prepare(self, item_tower: HasParts) -> None:
        """Prepare all content that an item tower reads: what the cache lacks of it is decoded and preprocessed."""
        self.parts = item_tower.parts()
        content: dict[str, PreparedContent] = {}
        for modality, (preprocess, frozen) in self.parts.items():
            if preprocess is None:
                content[modality] = Identity(self.trained_N)
            elif isinstance(preprocess, ContentTable):
                content[modality] = preprocess.rows_of(self.catalogue.items)
            else:
                # A tokenizer, say, is learned from the items of the training rows: no held-out or later one.
                preprocess.fit([self.catalogue.items[n] for n in np.flatnonzero(self.trained_N)])
                content[modality] = self.prepare_content(self.catalogue.items, preprocess, frozen=frozen)
        self._items = ItemBatches(content)

    @property
    def items(self) -> ItemBatches:
        """All prepared content."""
        if self._items is None:
            raise RuntimeError("the content is not prepared: call prepare(item_tower) first")
        return self._items

    def train_dataloader(self) -> DataLoader[Any]:
        """Windows of the training sequences."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = WindowSampler(
            self.train_sequences, self.history_length, self.users_per_batch, self.seed, rank, world_size
        )
        batches = TrainBatches(self.train_sequences, self.items, self.users, self.catalogue.user_ids)
        self.loader = ResumableLoader(batches, sampler, self.loader_workers)
        if self.place:
            self.loader.load_state_dict(self.place)
        return self.loader

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint's rows and its place in the order refer to: with others, they mean nothing.

        Returns:
            ``catalogue``: a digest of items, users and training rows; ``order``: the settings that decide the order.
        """
        sequences = self.train_sequences
        names = "\n".join([*(item.item_id for item in self.catalogue.items), "", *self.catalogue.user_ids])
        found = hashlib.sha256(names.encode())
        for array in (sequences.starts, sequences.item):
            found.update(array.tobytes())
        order = f"users_per_batch={self.users_per_batch} history_length={self.history_length} seed={self.seed}"
        return {"catalogue": found.hexdigest()[:16], "order": f"datamodule.{order}"}

    def state_dict(self) -> dict[str, Any]:
        """The place in the order of windows, and of what."""
        place = self.loader.state_dict() if self.loader is not None else {}
        return {**place, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the place for the loader: Lightning's own restoring of loaders comes too late where the schedule asks
        for the number of steps, which makes the loader first."""
        self.place = dict(state_dict)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The catalogue, then the validation users."""
        return self.ranking_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """The catalogue, then the test users."""
        return self.ranking_loaders("test")

    def ranking_loaders(self, split: str) -> list[DataLoader[Any]]:
        """The catalogue, then the users of a split."""
        return [self.item_batches(), self.user_batches(split)]

    def item_batches(self) -> DataLoader[Any]:
        """The whole catalogue in order."""
        return _in_order(np.arange(len(self.catalogue.items)), self.ITEMS_PER_BATCH, self.items)

    def unfrozen_item_batches(self) -> DataLoader[Any]:
        """The whole catalogue in order, its content as it is before any frozen layers."""
        frozen = {name: preprocess for name, (preprocess, layers) in self.parts.items() if layers is not None}
        prepared = {name: self.prepare_content(self.catalogue.items, preprocess) for name, preprocess in frozen.items()}
        items = ItemBatches({**self.items.content, **prepared})
        return _in_order(np.arange(len(self.catalogue.items)), self.ITEMS_PER_BATCH, items)

    def sample_items(self) -> ItemBatch:
        """A batch of items that have training interactions, drawn by the seed."""
        trained = np.flatnonzero(self.trained_N)
        drawn = np.random.default_rng(self.seed).permutation(trained)[: self.ITEMS_PER_BATCH]
        return self.items(np.sort(drawn))

    def user_batches(self, split: str) -> DataLoader[Any]:
        """The users of a task, with the histories that the task allows."""
        users_E, history = self.tasks[split].user_index_E, self.known(split)
        return _in_order(users_E, self.USERS_PER_BATCH, lambda users_B: self.users.latest(users_B, history))

    def known(self, split: str) -> Sequences:
        """Every user's history when the rankings of a split are asked for."""
        return self._sequences(history_rows(self.catalogue.log, self.split, split))

    def _sequences(self, keep: Any) -> Sequences:
        return Sequences.of(self.catalogue.log, keep, len(self.catalogue.user_ids))


def _in_order(index: Array, size: int, make: Callable[[Array], ItemBatch | UserBatch]) -> DataLoader[Any]:
    """Batches made of ``size`` indices each."""
    # A generator of its own: by default, each pass over a loader draws from the one that dropout uses.
    own = torch.Generator()
    return DataLoader(index, size, collate_fn=lambda part: make(np.array(part)), generator=own)  # type: ignore[arg-type]


class ResumableLoader(DataLoader[Any]):
    """A data loader whose place in the order goes into the checkpoint."""

    def __init__(self, batches: TrainBatches, sampler: WindowSampler, workers: int) -> None:
        super().__init__(batches, batch_size=None, sampler=sampler, num_workers=workers, generator=torch.Generator())
        self.windows = sampler
        self.used = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.used = self.windows.first_batch
        for batch in super().__iter__():
            self.used += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and how many of its batches have been used."""
        return {**self.windows.state_dict(), "first_batch": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.windows.load_state_dict(state)
        self.used = self.windows.first_batch
