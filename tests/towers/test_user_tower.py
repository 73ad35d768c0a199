"""avrec.towers.{user_tower,ncf,score}: the query, who is unknown, and what the branches learn from."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec.batch import UserBatch
from avrec.towers.history import HistoryAttention
from avrec.towers.ncf import NCF
from avrec.towers.score import Score
from avrec.towers.user_tower import MeanHistory, UserColumns, UserTower, UserVector

USERS, ITEMS, D, L = 5, 9, 8, 4


def make(**arguments: Any) -> UserTower:
    torch.manual_seed(0)
    tower = UserTower(
        lambda dim: HistoryAttention(dim, 1, 2, L, dropout=0.0),
        lambda dim, columns: NCF(dim, columns, (6,), dropout=0.0),
        UserColumns((4, 3), 2, width=3),
        USERS,
        D,
        **{"unknown_rate": 0.0, **arguments},
    )
    nn.init.normal_(tower.ncf.join.weight, std=0.5)
    return tower


def users(*lengths: int, row: Any = None) -> UserBatch:
    generator = torch.Generator().manual_seed(1)
    B = len(lengths)
    present_BL = torch.arange(L) < torch.tensor(lengths)[:, None]
    return UserBatch(
        user_B=torch.arange(1, B + 1) if row is None else torch.tensor(row),
        categories_BC=torch.randint(3, (B, 2), generator=generator),
        numbers_BR=torch.randn(B, 2, generator=generator),
        history_BL=torch.randint(ITEMS, (B, L), generator=generator) * present_BL,
        history_present_BL=present_BL,
        history_time_BL=(torch.rand(B, L, generator=generator, dtype=torch.float64) * 1e6).cumsum(1) * present_BL,
    )


@pytest.fixture
def item_XD() -> Tensor:
    return torch.randn(ITEMS, D, generator=torch.Generator().manual_seed(2))


def test_last_is_the_query_after_the_whole_history(item_XD: Tensor) -> None:
    tower = make().eval()
    batch = users(0, 2, 4, 1)
    query_BQD = tower(batch, item_XD)
    assert query_BQD.shape == (4, L + 1, D)
    expected = torch.stack([query_BQD[b, length] for b, length in enumerate([0, 2, 4, 1])])
    assert torch.equal(tower.last(batch, item_XD), expected)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(4))


def test_the_query_is_history_plus_ncf(item_XD: Tensor) -> None:
    tower = make(normalize=False).eval()
    batch = users(3)
    history_QD = tower.attention(item_XD[batch.history_BL], batch.history_present_BL, batch.history_time_BL)[0]
    columns = torch.cat(
        [
            tower.columns.tables[0].weight[batch.categories_BC[0, 0]],
            tower.columns.tables[1].weight[batch.categories_BC[0, 1]],
            batch.numbers_BR[0],
        ]
    )
    for q in range(4):
        expected = history_QD[q] + ncf_twin(tower.ncf, tower.user_table.weight[1], history_QD[q], columns)
        torch.testing.assert_close(tower(batch, item_XD)[0, q], expected, rtol=1e-5, atol=1e-6)


def ncf_twin(ncf: NCF, user: Tensor, history: Tensor, columns: Tensor) -> Tensor:
    """One user at one position, number by number; the MLP of one hidden layer."""
    given = [*user, *history, *columns]
    hidden = []
    for weights, bias in zip(ncf.mlp[0].weight, ncf.mlp[0].bias, strict=True):
        x = sum(w * g for w, g in zip(weights, given, strict=True)) + bias
        hidden.append(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
    joined = [*(u * h for u, h in zip(user, history, strict=True)), *hidden]
    rows = zip(ncf.join.weight, ncf.join.bias, strict=True)
    return torch.stack([sum(w * j for w, j in zip(weights, joined, strict=True)) + bias for weights, bias in rows])


def test_ncf_equals_its_naive_twin() -> None:
    torch.manual_seed(0)
    ncf = NCF(3, 2, (5,)).double().eval()
    nn.init.normal_(ncf.join.weight)
    nn.init.normal_(ncf.join.bias)
    user, history, columns = (torch.randn(2, 4, width, dtype=torch.float64) for width in (3, 3, 2))
    joined = ncf(user, history, columns)
    for b in range(2):
        for q in range(4):
            torch.testing.assert_close(joined[b, q], ncf_twin(ncf, user[b, q], history[b, q], columns[b, q]))


def test_ncf_starts_silent_and_both_branches_learn_after_one_step() -> None:
    torch.manual_seed(0)
    ncf = NCF(D, 0, (6, 4), dropout=0.0)
    user, history = torch.randn(2, 3, D, requires_grad=True), torch.randn(2, 3, D)
    goal = torch.randn(2, 3, D)
    optimizer = torch.optim.SGD(ncf.parameters(), lr=0.1)
    assert (ncf(user, history, torch.zeros(2, 3, 0)) == 0).all()
    for _ in range(2):
        optimizer.zero_grad()
        user.grad = None
        (ncf(user, history, torch.zeros(2, 3, 0)) - goal).square().mean().backward()
        optimizer.step()
    for name, parameter in ncf.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert ncf.join.weight.grad[:, :D].abs().sum() > 0, "GMF"
    assert ncf.join.weight.grad[:, D:].abs().sum() > 0, "MLP"
    assert user.grad.abs().sum() > 0


def test_row_0_is_the_unknown_user(item_XD: Tensor) -> None:
    tower = make().eval()
    batch = users(2, 2, row=[0, 3])
    before = tower.last(batch, item_XD)
    tower.user_table.weight.data[0] += 1
    after = tower.last(batch, item_XD)
    assert not torch.allclose(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_users_are_unknown_at_the_rate_in_training_alone() -> None:
    """100,000 users: the share to 0.01."""
    torch.manual_seed(0)
    tower = make(unknown_rate=0.3)
    user_B = torch.arange(1, 6).repeat(20_000)
    seen_B = tower.train()._known(user_B)
    assert abs(float((seen_B == 0).float().mean()) - 0.3) < 0.01
    assert torch.equal(seen_B[seen_B > 0], user_B[seen_B > 0])
    assert torch.equal(tower.eval()._known(user_B), user_B)
    assert torch.equal(make(unknown_rate=0.0).train()._known(user_B), user_B)
    assert (make(unknown_rate=1.0).train()._known(user_B) == 0).all()


@pytest.mark.parametrize("name", ["categories_BC", "numbers_BR", "user_B"])
def test_who_a_user_is_matters_and_only_to_that_user(name: str, item_XD: Tensor) -> None:
    tower = make().eval()
    batch = users(2, 3)
    before = tower.last(batch, item_XD)
    values = getattr(batch, name).clone()
    values[0] = (values[0] + 1) % 3 if name == "categories_BC" else values[0] + 3
    setattr(batch, name, values)
    after = tower.last(batch, item_XD)
    assert not torch.allclose(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_columns_without_any_column() -> None:
    columns = UserColumns()
    batch = users(1, 2)
    batch.categories_BC, batch.numbers_BR = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0)
    assert columns(batch).shape == (2, columns.width) == (2, 0)


def test_score_divides_by_the_temperature() -> None:
    score = Score(temperature=0.25, bias=-2.0)
    torch.testing.assert_close(score.scale(torch.tensor([[1.0, -2.0]])), torch.tensor([[4.0, -8.0]]))
    assert score.bias.item() == -2.0
    assert score.log_temperature.requires_grad
    assert "temperature=0.25, bias=-2" in repr(score)


def test_the_temperature_stays_above_its_lowest() -> None:
    score = Score(temperature=0.1, lowest=0.05)
    score.log_temperature.data.fill_(-20.0)
    assert score.temperature.item() == pytest.approx(0.05)
    assert not any(parameter.requires_grad for parameter in Score(learned=False).parameters())


def test_a_user_vector_is_the_users_whatever_was_done(item_XD: Tensor) -> None:
    tower = UserVector(UserColumns(), USERS, D)
    query_BQD = tower(users(0, 4, 2, row=[3, 0, 3]), item_XD)
    assert query_BQD.shape == (3, L + 1, D)
    assert torch.equal(query_BQD[0], query_BQD[2])
    assert torch.equal(query_BQD[0], tower.user_table.weight[3].expand(L + 1, D))
    assert not query_BQD[1].any()


def test_mean_history_is_the_mean_of_what_came_before(item_XD: Tensor) -> None:
    batch = users(0, 4, 2)
    query_BQD = MeanHistory()(batch, item_XD)
    for b, length in enumerate((0, 4, 2)):
        for q in range(length + 1):
            seen = item_XD[batch.history_BL[b, :q]]
            torch.testing.assert_close(query_BQD[b, q], seen.mean(0) if q else torch.zeros(D))
    assert not list(MeanHistory().parameters())
