"""avrec.towers.history against loops, and what it may and may not depend on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec.towers.history import TIME_BUCKETS, HistoryAttention

D, HEADS, LONGEST = 8, 2, 5
DAY = 86400.0


def make(depth: int = 2, **arguments: Any) -> HistoryAttention:
    torch.manual_seed(0)
    attention = HistoryAttention(D, depth, HEADS, LONGEST, **arguments).double().eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    return attention


def histories(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    B, L = len(lengths), max(lengths)
    present_BL = torch.arange(L) < torch.tensor(lengths)[:, None]
    items_BLD = torch.randn(B, L, D, generator=generator, dtype=torch.float64)
    gap_BL = torch.randint(0, 5000, (B, L), generator=generator).double() ** 2
    return items_BLD, present_BL, 1.7e9 + gap_BL.cumsum(1)


def changed(tensor: Tensor, where: Any, value: Any) -> Tensor:
    tensor = tensor.clone()
    tensor[where] = value
    return tensor


def test_later_items_do_not_change_earlier_queries() -> None:
    attention = make()
    items, present, time = histories(5)
    before = attention(items, present, time)
    for place in range(5):
        after = attention(changed(items, (0, place), 9.0), present, time)
        torch.testing.assert_close(after[0, : place + 1], before[0, : place + 1], rtol=0, atol=1e-12)
        assert ((after - before)[0, place + 1 :].abs().amax(1) > 1e-6).all()
        # Nor when they were.
        moved = attention(items, present, changed(time, (0, slice(place, None)), 3e9))
        torch.testing.assert_close(moved[0, : place + 1], before[0, : place + 1], rtol=0, atol=1e-12)


def test_no_gradient_flows_from_a_query_to_a_later_item() -> None:
    items, present, time = histories(5)
    items.requires_grad_()
    gradient = torch.autograd.grad(make()(items, present, time)[0, 2].sum(), items)[0]
    assert (gradient[0, 2:] == 0).all()
    assert (gradient[0, :2].abs().sum(1) > 0).all()


def test_padding_does_not_matter() -> None:
    attention = make()
    items, present, time = histories(2, 5, 0)
    before = attention(items, present, time)
    after = attention(items.masked_fill(~present.unsqueeze(-1), 1e6), present, time.masked_fill(~present, 0.0))
    for b, length in enumerate(present.sum(1).tolist()):
        torch.testing.assert_close(after[b, : length + 1], before[b, : length + 1], rtol=0, atol=1e-12)


def test_neither_the_width_of_the_window_nor_the_company_matters() -> None:
    attention = make()
    items, present, time = histories(2, 5, 3)
    whole = attention(items, present, time)
    for b, length in enumerate([2, 5, 3]):
        alone = attention(items[b : b + 1, :length], present[b : b + 1, :length], time[b : b + 1, :length])
        torch.testing.assert_close(alone[0], whole[b, : length + 1], rtol=0, atol=1e-12)


def test_an_empty_history_is_the_learned_vector_s_own_road() -> None:
    attention = make()
    items, _, time = histories(3, 3)
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    query_BD = attention(items, nobody, time)[:, 0]
    assert torch.equal(query_BD[0], query_BD[1])
    x = attention.empty_history.view(1, 1, -1)
    for layer in attention.layers:
        x = layer(x, torch.zeros(1, HEADS, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(query_BD[0], attention.empty_history + attention.norm(x)[0, 0])
    gradient = torch.autograd.grad(query_BD.sum(), attention.empty_history)[0]
    assert gradient.abs().sum() > 0


def test_time_gaps_matter_and_nothing_but_gaps() -> None:
    attention = make()
    items, present, time = histories(4)
    before = attention(items, present, time)
    torch.testing.assert_close(attention(items, present, time + 1000 * DAY), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(attention(items, present, time - time[:, :1]), before, rtol=0, atol=1e-12)
    stretched = attention(items, present, time[:, :1] + (time - time[:, :1]) * 64)
    assert ((stretched - before)[0, 2:].abs().amax(1) > 1e-6).all()
    # One item, or none, has no gap.
    torch.testing.assert_close(stretched[0, :2], before[0, :2], rtol=0, atol=1e-12)


def test_order_matters_where_times_do_not_tell() -> None:
    attention = make()
    items, present, time = histories(3)
    same_time = torch.zeros_like(time)
    turned = attention(items.flip(1), present, same_time)
    assert (attention(items, present, same_time) - turned)[0, 3].abs().max() > 1e-6


@pytest.mark.parametrize("depth", [1, 2])
def test_equals_a_naive_twin(depth: int) -> None:
    attention = make(depth)
    items, present, time = histories(4, 7)
    whole = attention(items, present, time)
    for b, length in enumerate([4, 7]):
        for q in range(length + 1):
            expected = twin(attention, items[b, :q], time[b, :q].tolist())
            torch.testing.assert_close(whole[b, q], expected, rtol=1e-9, atol=1e-9)


def twin(attention: HistoryAttention, items_qD: Tensor, time: list[float]) -> Tensor:
    """One query position alone, by loops: every position, head and earlier position in turn."""
    x = [attention.empty_history, *items_qD]
    start = list(x)
    head_dim = D // HEADS

    def bias(i: int, j: int, head: int) -> Tensor:
        bucket = TIME_BUCKETS
        if i > 0 and j > 0:
            bucket = min(int(math.log2(1 + max(0.0, time[i - 1] - time[j - 1]))), TIME_BUCKETS - 1)
        distance = min(i - j, LONGEST)
        return attention.position_bias.weight[distance, head] + attention.time_bias.weight[bucket, head]

    for block in attention.layers:
        q, k, v = zip(*[block.qkv(block.attention_norm(row)).chunk(3) for row in x], strict=True)
        after = []
        for i in range(len(x)):
            parts = []
            for head in range(HEADS):
                cut = slice(head * head_dim, (head + 1) * head_dim)
                score = [(q[i][cut] @ k[j][cut]) / math.sqrt(head_dim) + bias(i, j, head) for j in range(i + 1)]
                weight = torch.stack(score).softmax(0)
                parts.append(sum(weight[j] * v[j][cut] for j in range(i + 1)))
            row = x[i] + block.out(torch.cat(parts))
            after.append(row + block.mlp(row))
        x = after
    last = len(x) - 1
    recency = torch.stack([bias(last, j, HEADS) for j in range(last + 1)]).softmax(0)
    profile = sum(recency[j] * start[j] for j in range(last + 1))
    return profile + attention.norm(x[last])


def test_dropout_rests_in_evaluation() -> None:
    attention = make(dropout=0.5)
    history = histories(4)
    assert torch.equal(attention(*history), attention(*history))
    attention.train()
    assert not torch.equal(attention(*history), attention(*history))
