"""The user tower: what a person did, as one query per history position."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avrec.batch import UserBatch
from avrec.checked import Count, Share, checked
from avrec.towers.rebuildable import Build, Rebuildable


class UserColumns(Rebuildable):
    """Categorical and numeric user columns as one vector.

    ``category_sizes`` counts the codes of each categorical column, code 0 (missing or unknown) included; ``width`` is
    that of its embedding. There are ``numbers`` numeric columns.
    """

    def __init__(self, category_sizes: Sequence[int] = (), numbers: int = 0, width: int = 8) -> None:
        super().__init__()
        self.category_sizes = list(category_sizes)
        self.numbers = numbers
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in category_sizes)
        self.width = width * len(category_sizes) + numbers

    def forward(self, users: UserBatch) -> Float[Tensor, "B c"]:
        """Encode B users."""
        parts = [table(users.categories_BC[:, c]) for c, table in enumerate(self.tables)]
        return torch.cat([*parts, users.numbers_BR], dim=1)


class UserTowerBase(Rebuildable, ABC):
    """What a user tower offers: a query for each history position, in training, serving and an exported program.

    A constructor takes ``columns``, ``num_users`` and ``dim``, and then arguments of its own. The operations of
    ``forward`` must be the same whatever the tensors hold, or the tower cannot be written as ONNX.

    Attributes:
        NEEDS_USERS: True where nothing is left of the tower without the vectors of single users.
        FIXED_LENGTH: True where a program (ONNX) takes histories of one length only, as recurrent networks do.
        columns: encodes the user columns that the tower reads; None: it reads none.
        user_table: the vectors of single users; row 0 is the unknown user; None: users have none.
    """

    HANDED = ("columns", "num_users", "dim")
    NEEDS_USERS: ClassVar[bool] = False
    FIXED_LENGTH: ClassVar[bool] = False
    columns: UserColumns | None
    user_table: nn.Embedding | None

    def __init__(self) -> None:
        super().__init__()
        self.columns = None
        self.user_table = None

    @abstractmethod
    def forward(self, users: UserBatch, item_XD: Float[Tensor, "X D"]) -> Float[Tensor, "B Q D"]:
        """A query for each history position: (B, L + 1, D), undefined beyond a user's history.

        Position q has seen the first q history items. Histories are indices into ``item_XD``: the batch's items, or the
        whole catalogue.
        """

    def options(self) -> dict[str, Any]:
        """The constructor's own arguments, and those of ``columns`` where the tower reads them."""
        return {**super().options(), **({} if self.columns is None else {"columns": self.columns.options()})}

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any], build: Build, **handed: Any) -> Any:
        """See ``Rebuildable``; ``handed`` is ``num_users`` and ``dim``."""
        return cls(**{**options, **handed, "columns": UserColumns(**options.get("columns", {}))})

    def last(self, users: UserBatch, item_XD: Float[Tensor, "X D"]) -> Float[Tensor, "B D"]:
        """The query after the whole history: what a user is served by."""
        query_BQD = self(users, item_XD)
        length_B = users.history_present_BL.sum(1)
        return query_BQD[torch.arange(length_B.shape[0], device=length_B.device), length_B]


class UserTower(UserTowerBase):
    """History attention and NCF, joined to a query.

    Args:
        attention: makes the history attention of ``dim``.
        ncf: makes the NCF of (``dim``, width of the user columns).
        columns: encodes the user columns.
        num_users: users of the catalogue; row 0 of the table is the unknown user.
        dim: D.
        unknown_rate: share of users given the unknown vector in a training step (per user and step), so that
            a person not seen in training is served by history alone.
        normalize: L2-normalise the query.
    """

    columns: UserColumns
    user_table: nn.Embedding

    @checked
    def __init__(
        self,
        attention: Callable[..., nn.Module],
        ncf: Callable[..., nn.Module],
        columns: UserColumns,
        num_users: int,
        dim: Count = 64,
        unknown_rate: Share = 0.3,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.attention = attention(dim=dim)
        self.columns = columns
        self.ncf = ncf(dim=dim, columns=columns.width)
        self.user_table = nn.Embedding(num_users + 1, dim)
        nn.init.normal_(self.user_table.weight, std=dim**-0.5)
        self.unknown_rate = unknown_rate
        self.normalize = normalize

    def forward(self, users: UserBatch, item_XD: Float[Tensor, "X D"]) -> Float[Tensor, "B Q D"]:
        """History plus NCF at each position."""
        history_BQD = self.attention(item_XD[users.history_BL], users.history_present_BL, users.history_time_BL)
        user_BQD = self.user_table(self._known(users.user_B)).unsqueeze(1).expand_as(history_BQD)
        columns_Bc = self.columns(users).to(history_BQD.dtype)
        columns_BQc = columns_Bc.unsqueeze(1).expand(-1, history_BQD.shape[1], -1)
        query_BQD = history_BQD + self.ncf(user_BQD, history_BQD, columns_BQc)
        return nn.functional.normalize(query_BQD, dim=-1) if self.normalize else query_BQD

    def options(self) -> dict[str, Any]:
        """The constructor's own arguments; its parts as they are named in an exported folder."""
        return {**super().options(), "attention": self.attention, "ncf": self.ncf}

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any], build: Build, **handed: Any) -> Any:
        """See ``Rebuildable``."""
        # Exports from before parts had names: there was one class of each.
        parts: dict[str, Any] = {}
        for key, kind in (("attention", "HistoryAttention"), ("ncf", "NCF")):
            given = dict(options[key])
            parts[key] = partial(build, given.pop("name", kind), given, nn.Module)
        return super().rebuilt({**options, **parts}, build, **handed)

    def _known(self, user_B: Tensor) -> Tensor:
        if not self.training or self.unknown_rate == 0:
            return user_B
        return user_B.masked_fill(torch.rand(user_B.shape, device=user_B.device) < self.unknown_rate, 0)


class UserVector(UserTowerBase):
    """A learned vector per user and nothing else: with an identity item tower, matrix factorisation.

    Row 0 of the table, zeros, is the unknown user. User columns are not read.
    """

    NEEDS_USERS = True
    user_table: nn.Embedding

    @checked
    def __init__(self, columns: UserColumns, num_users: int, dim: Count = 64) -> None:
        super().__init__()
        self.user_table = nn.Embedding(num_users + 1, dim, padding_idx=0)
        nn.init.normal_(self.user_table.weight[1:], std=dim**-0.5)

    def forward(self, users: UserBatch, item_XD: Float[Tensor, "X D"]) -> Float[Tensor, "B Q D"]:
        """The user's vector at each position."""
        return self.user_table(users.user_B).unsqueeze(1).expand(-1, users.history_BL.shape[1] + 1, -1)


class MeanHistory(UserTowerBase):
    """The mean of the history items, zeros before the first: nothing is learned of users."""

    def __init__(self, columns: UserColumns | None = None, num_users: int = 0, dim: int = 64) -> None:
        super().__init__()

    def forward(self, users: UserBatch, item_XD: Float[Tensor, "X D"]) -> Float[Tensor, "B Q D"]:
        """Position q has the mean of the first q history items."""
        history_BLD = item_XD[users.history_BL] * users.history_present_BL.unsqueeze(-1)
        sum_BQD = nn.functional.pad(history_BLD.cumsum(1), (0, 0, 1, 0))
        return sum_BQD / torch.arange(sum_BQD.shape[1], device=sum_BQD.device).clamp(min=1)[:, None]
