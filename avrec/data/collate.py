"""Batches: each distinct item once, histories and targets as indices into them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from avrec.batch import Array, ItemBatch, TrainBatch, UserBatch
from avrec.content.preprocess import PreparedContent
from avrec.data.tables import Catalogue
from avrec.data.windows import Sequences, log_inclusion, padded


class Identity:
    """The identity modality's content: item index + 1 where the item has a training interaction, else 0."""

    def __init__(self, trained_N: Array) -> None:
        self.present_N = np.ones(len(trained_N), bool)
        self.row_N = np.where(trained_N, np.arange(1, len(trained_N) + 1), 0)

    def read(self, indices: Array) -> dict[str, Array]:
        """Rows of the identity table."""
        return {"row": self.row_N[indices]}


class ItemBatches:
    """Makes item batches of the content by modality, in the order of the item tower's."""

    def __init__(self, content: Mapping[str, PreparedContent]) -> None:
        self.content = content
        self.present_NM = np.stack([prepared.present_N for prepared in content.values()], axis=1)

    def __call__(self, index_U: Array) -> ItemBatch:
        """The batch of these distinct items; a missing modality's content is not even read."""
        present_UM = self.present_NM[index_U]
        content: dict[str, dict[str, Any]] = {}
        for m, (modality, prepared) in enumerate(self.content.items()):
            having = index_U[present_UM[:, m]]
            if len(having):
                content[modality] = {name: torch.from_numpy(a) for name, a in prepared.read(having).items()}
        return ItemBatch(torch.from_numpy(index_U), torch.from_numpy(present_UM), content)


class UserBatches:
    """Makes user batches with histories of ``history_length``; users that are not ``known`` are the unknown user."""

    def __init__(self, catalogue: Catalogue, known: Array, history_length: int) -> None:
        self.row = np.where(known, np.arange(1, len(known) + 1), 0)
        self.categories = catalogue.user_categories
        self.numbers = catalogue.user_numbers
        self.history_length = history_length

    def of(self, users: Array, history_BL: Array, present_BL: Array, time_BL: Array) -> UserBatch:
        """The batch of these users with these histories."""
        arrays = (self.row[users], self.categories[users], self.numbers[users], history_BL, present_BL, time_BL)
        return UserBatch(*map(torch.from_numpy, arrays))

    def latest(self, users: Array, history: Sequences) -> UserBatch:
        """Users with the youngest ``history_length`` items of ``history``, as catalogue indices."""
        first, stop = history.last(users, self.history_length)
        width = max(1, int((stop - first).max(initial=0)))
        history_BL, present_BL = padded(history.item, first, stop, width)
        time_BL, _ = padded(history.time, first, stop, width)
        return self.of(users, history_BL, present_BL, time_BL)


class TrainBatches(torch.utils.data.Dataset[TrainBatch]):
    """Makes training batches of windows; indexed by (B, 3) arrays of user, first row, row after the last."""

    def __init__(self, sequences: Sequences, items: ItemBatches, users: UserBatches, user_ids: Sequence[str]) -> None:
        self.sequences = sequences
        self.items = items
        self.users = users
        self.user_ids = user_ids
        num_items = len(items.present_NM)
        self.share_N = np.bincount(sequences.item, minlength=num_items) / max(1, len(sequences.item))

    def __getitem__(self, windows: Array) -> TrainBatch:
        """The batch of these windows."""
        user_B, first_B, stop_B = windows.T
        item_BQ, present_BQ = padded(self.sequences.item, first_B, stop_B, int((stop_B - first_B).max()))
        time_BQ, _ = padded(self.sequences.time, first_B, stop_B, item_BQ.shape[1])
        weight_BQ, _ = padded(self.sequences.weight, first_B, stop_B, item_BQ.shape[1])
        index_U, index_P = np.unique(item_BQ[present_BQ], return_inverse=True)
        target_BQ = np.zeros_like(item_BQ)
        target_BQ[present_BQ] = index_P
        trained_BQ = present_BQ & (weight_BQ > 0)
        # A window that starts amid a history has no empty history before it, and its first item was another's target.
        trained_BQ[first_B != self.sequences.starts[user_B], 0] = False
        # A window's last item is no history; positions that hold none are blank.
        past_BL = present_BQ[:, 1:]
        users = self.users.of(user_B, target_BQ[:, :-1] * past_BL, past_BL, time_BQ[:, :-1] * past_BL)
        return TrainBatch(
            items=self.items(index_U),
            users=users,
            target_BQ=torch.from_numpy(target_BQ),
            target_present_BQ=torch.from_numpy(trained_BQ),
            weight_BQ=torch.from_numpy(np.where(trained_BQ, weight_BQ, 0).astype(np.float32)),
            own_BU=torch.from_numpy(self._own(user_B, index_U)),
            log_q_U=torch.from_numpy(log_inclusion(self.share_N[index_U], int(present_BQ.sum())).astype(np.float32)),
            users_named=[self.user_ids[user] for user in user_B],
        )

    def _own(self, user_B: Array, index_U: Array) -> Array:
        """(B, U): True where the item is among all the user's training interactions."""
        place_N = np.full(len(self.share_N), -1)
        place_N[index_U] = np.arange(len(index_U))
        own_BU = np.zeros((len(user_B), len(index_U)), bool)
        for row, user in enumerate(user_B):
            place = place_N[self.sequences.item[self.sequences.starts[user] : self.sequences.starts[user + 1]]]
            own_BU[row, place[place >= 0]] = True
        return own_BU
