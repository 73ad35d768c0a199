"""History attention: a causal transformer over a user's items that knows order and recency."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.compiler import is_exporting

from avrec.checked import Count, Rate, Whole, checked
from avrec.errors import UserError
from avrec.towers.rebuildable import Rebuildable

TIME_BUCKETS = 32


class HistoryAttention(Rebuildable):
    """Causal self-attention over the history with relative position and time-gap biases.

    A learned vector, the empty history, stands before the first item: query position q attends to it and to the
    first q items. The two biases follow HSTU (Zhai et al. 2024, section 3.2): a learned number per head for the
    distance in positions, and one for the distance in time, in buckets of powers of two seconds. Neither knows
    where in a user's life the window lies, so a window means the same wherever it was cut.

    The transformer's output is added to a profile: the mean of the item embeddings seen so far, weighted by a
    recency that is learned as one more head of biases. At the start of training the profile is all there is:
    "like what came before" is learned in tens of steps, where a transformer alone takes thousands.

    Args:
        dim: D.
        depth: layers.
        heads: attention heads; must divide D.
        max_history: longest history, L; farther distances share one bias.
        dropout: on attention output and feed-forward output.
    """

    HANDED = ("dim",)

    @checked
    def __init__(
        self, dim: Count = 64, depth: Whole = 2, heads: Count = 2, max_history: Count = 50, dropout: Rate = 0.1
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"`user_tower.attention.heads` must divide dim={dim}; got {heads}.")
        self.empty_history = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.max_history = max_history
        self.position_bias = nn.Embedding(max_history + 1, heads + 1)
        self.time_bias = nn.Embedding(TIME_BUCKETS + 1, heads + 1)
        nn.init.zeros_(self.position_bias.weight)
        nn.init.zeros_(self.time_bias.weight)
        self.layers = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        nn.init.constant_(self.norm.weight, 0.005)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        history_BLD: Float[Tensor, "B L D"],
        history_present_BL: Bool[Tensor, "B L"],
        history_time_BL: Float[Tensor, "B L"],
    ) -> Float[Tensor, "B Q D"]:
        """One history vector per query position, of item embeddings that stand oldest first, left-aligned; times in s.

        Position q of the L + 1 has read the first q items. Positions beyond a user's history are undefined.
        """
        first = self.empty_history.to(history_BLD.dtype).expand(history_BLD.shape[0], 1, -1)
        seen_BQD = torch.cat([first, history_BLD * history_present_BL.unsqueeze(-1)], dim=1)
        bias_BHQQ = self._bias(history_time_BL).to(seen_BQD.dtype)
        profile_BQD = bias_BHQQ[:, -1].softmax(-1) @ seen_BQD
        x_BQD = self.drop(seen_BQD)
        for layer in self.layers:
            x_BQD = layer(x_BQD, bias_BHQQ[:, :-1])
        return profile_BQD + self.norm(x_BQD)

    def _bias(self, history_time_BL: Tensor) -> Float[Tensor, "B H Q Q"]:
        place_Q = torch.arange(history_time_BL.shape[1] + 1, device=history_time_BL.device)
        distance_QQ = (place_Q[:, None] - place_Q[None, :]).clamp(0, self.max_history)
        gap_BLL = (history_time_BL[:, :, None] - history_time_BL[:, None, :]).clamp(min=0)
        # Compared, not computed: libraries round log2 of a power of two to either side of it.
        edges = 2 ** torch.arange(1, TIME_BUCKETS, device=gap_BLL.device, dtype=gap_BLL.dtype)
        bucket_BLL = torch.bucketize(1 + gap_BLL, edges, right=True)
        bucket_BQQ = nn.functional.pad(bucket_BLL, (1, 0, 1, 0), value=TIME_BUCKETS)
        bias_BQQH = self.position_bias(distance_QQ) + self.time_bias(bucket_BQQ)
        past_QQ = place_Q[:, None] >= place_Q[None, :]
        return bias_BQQH.permute(0, 3, 1, 2).masked_fill(~past_QQ, float("-inf"))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BQD: Tensor, bias_BHQQ: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_BQD)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHQQ)
        if is_exporting():  # a graph's attention may lay its output out in another way than the one traced
            attended = attended.contiguous()
        x_BQD = x_BQD + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return x_BQD + self.mlp(x_BQD)
