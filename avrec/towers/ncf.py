"""NCF: the user and what the user did, joined by a GMF and an MLP branch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from avrec.checked import Count, Rate, Whole, checked
from avrec.towers.rebuildable import Rebuildable


class NCF(Rebuildable):
    """Neural collaborative filtering's two branches (He et al. 2017, section 3.4) on the user's side.

    In the paper the branches join a user with an item; a tower that can be searched must not see the item, so
    here they join the user with the user's history: GMF ``user ⊙ history``, MLP over ``[user, history, columns]``.

    Args:
        dim: D.
        columns: width of the encoded user columns; 0 without any.
        hidden: widths of the MLP's hidden layers.
        dropout: after each hidden layer.
    """

    HANDED = ("dim", "columns")

    @checked
    def __init__(
        self, dim: Count = 64, columns: Whole = 0, hidden: Sequence[Count] = (128, 64), dropout: Rate = 0.1
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [2 * dim + columns, *hidden]
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width_in, width_out), nn.GELU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers)
        self.join = nn.Linear(dim + widths[-1], dim)
        # The tower adds it to the history: at the start, the history speaks alone.
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.join.bias)

    def forward(
        self,
        user_BQD: Float[Tensor, "B Q D"],
        history_BQD: Float[Tensor, "B Q D"],
        columns_BQc: Float[Tensor, "B Q c"],
    ) -> Float[Tensor, "B Q D"]:
        """The joined branches."""
        gmf = user_BQD * history_BQD
        mlp = self.mlp(torch.cat([user_BQD, history_BQD, columns_BQc], dim=-1))
        return self.join(torch.cat([gmf, mlp], dim=-1))
