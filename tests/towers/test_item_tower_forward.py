"""avrec.towers.item_tower: which encoders run, for whom, and what is hidden in training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec.batch import ItemBatch
from avrec.errors import UserError
from avrec.towers.encoders.base import Encoder
from avrec.towers.fusion import AttentionFusion, ConcatFusion, GatedFusion, MeanFusion
from avrec.towers.item_tower import ItemTower, Standardise

D = 8
PRESENT = torch.tensor([[True, True], [False, True], [True, False], [True, True], [False, False]])


class Linear(Encoder):
    """An encoder of given features that keeps count of its rows."""

    preprocess = None

    def __init__(self, modality: str, width: int) -> None:
        super().__init__()
        self.modality = modality
        self.out_dim = width
        self.layer = nn.Linear(width, width)
        self.rows: list[int] = []

    def forward(self, content: dict[str, Tensor]) -> Tensor:
        self.rows.append(len(content["x"]))
        return self.layer(content["x"])


def make(fusion: Any = ConcatFusion, **arguments: Any) -> ItemTower:
    torch.manual_seed(0)
    encoders = {"audio": Linear("audio", 5), "vision": None, "text": Linear("text", 3)}
    return ItemTower(encoders, fusion, D, **{"modality_dropout": 0.0, **arguments})


def batch(rows: Any = slice(None)) -> ItemBatch:
    """Items as ItemBatches makes them: the content of those who have it, in order; none, no entry."""
    generator = torch.Generator().manual_seed(1)
    index_U, present_UM = torch.arange(len(PRESENT))[rows], PRESENT[rows]
    content = {}
    for m, (name, width) in enumerate([("text", 3), ("audio", 5)]):
        values = torch.randn(len(PRESENT), width, generator=generator)
        if present_UM[:, m].any():
            content[name] = {"x": values[index_U[present_UM[:, m]]]}
    return ItemBatch(index_U, present_UM, content)


def test_modalities_stand_in_their_fixed_order_and_none_is_left_out() -> None:
    assert make().modalities == ["text", "audio"]


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        ({}, "was given no encoder"),
        ({"text": None}, "was given no encoder. It needs one or more of text, vision, audio, identity"),
        ({"text": None, "smell": None}, r"was given unknown modalities \['smell'\]"),
    ],
)
def test_refuses_to_read_nothing_and_the_unknown(encoders: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ItemTower(encoders, ConcatFusion, D)


def test_an_absent_modality_s_encoder_does_not_run() -> None:
    tower = make().eval()
    tower(batch())
    tower(batch([1, 4]))
    tower(batch([4]))
    assert tower.encoders["text"].rows == [3]
    assert tower.encoders["audio"].rows == [3, 1]


@pytest.mark.parametrize("fusion", [ConcatFusion, MeanFusion, GatedFusion, AttentionFusion])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_item_s_vector_does_not_depend_on_its_batch(fusion: Any, normalize: bool) -> None:
    tower = make(fusion, normalize=normalize).eval()
    whole_UD = tower(batch())
    assert torch.isfinite(whole_UD).all()
    for rows in ([4], [2], [3, 0], [1, 4, 2]):
        torch.testing.assert_close(tower(batch(rows)), whole_UD[rows], rtol=1e-5, atol=1e-6)
    if normalize:
        torch.testing.assert_close(whole_UD[:4].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("fusion", [ConcatFusion, MeanFusion, GatedFusion, AttentionFusion])
def test_an_item_without_any_modality_leaves_gradients_finite(fusion: Any) -> None:
    tower = make(fusion)
    tower(batch())[:, 0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in tower.parameters() if p.grad is not None)


def test_modality_dropout_hides_at_its_rate_and_never_the_last() -> None:
    """100,000 items of three modalities: rates to 0.01."""
    torch.manual_seed(0)
    tower = make(modality_dropout=0.3)
    present_UM = torch.rand(100_000, 3) < 0.6
    kept_UM = tower._dropped(present_UM)
    assert not (kept_UM & ~present_UM).any()
    assert torch.equal(kept_UM.any(1), present_UM.any(1))
    single_U = present_UM.sum(1) == 1
    assert torch.equal(kept_UM[single_U], present_UM[single_U])
    full_U = present_UM.sum(1) == 3
    counts = kept_UM[full_U].sum(1).bincount(minlength=4) / full_U.sum()
    # Binomial, but that none kept becomes one kept.
    expected = [0, 3 * 0.7 * 0.3**2 + 0.3**3, 3 * 0.7**2 * 0.3, 0.7**3]
    torch.testing.assert_close(counts, torch.tensor(expected), rtol=0, atol=0.01)
    each = kept_UM[full_U].float().mean(0)
    torch.testing.assert_close(each, each.mean().expand(3), rtol=0, atol=0.01)
    # Per item, not per batch: neighbours are hidden independently.
    hidden = (~kept_UM[full_U][:, 0]).float()
    assert abs(float(torch.corrcoef(torch.stack([hidden[1:], hidden[:-1]]))[0, 1])) < 0.02


def test_modality_dropout_rests_in_evaluation() -> None:
    tower = make(modality_dropout=0.9).eval()
    assert torch.equal(tower._dropped(PRESENT), PRESENT)
    assert torch.equal(tower(batch()), make().eval()(batch()))
    assert torch.equal(make(modality_dropout=0.0).train()._dropped(PRESENT), PRESENT)


def test_a_hidden_modality_contributes_nothing_and_gets_no_gradient() -> None:
    tower = make()
    tower._dropped = lambda present_UM: present_UM & torch.tensor([True, False])  # type: ignore[method-assign]
    tower(batch([0, 3])).square().sum().backward()
    assert tower.encoders["audio"].layer.weight.grad.abs().sum() == 0
    assert tower.encoders["text"].layer.weight.grad.abs().sum() > 0


def test_standardise_takes_away_what_all_items_have_in_common() -> None:
    layer = Standardise(3)
    values = torch.randn(200, 3) * torch.tensor([2.0, 1e-3, 0.0]) + torch.tensor([5.0, -1.0, 7.0])
    assert torch.equal(layer(values), values), "untouched until measured"
    layer.fit(values)
    after = layer(values)
    torch.testing.assert_close(after.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(after.std(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(layer(values[:1]), after[:1])


def test_the_tower_measures_once_and_stays_in_its_mode() -> None:
    tower = make().train()
    tower.standardise(batch([0, 2, 3]))
    assert tower.training
    assert tower.project["text"][0].mean.abs().sum() > 0
    torch.testing.assert_close(tower.project["audio"][0].scale, tower.project["audio"][0].scale.clone())
    again = make()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.eval()(batch()), tower.eval()(batch()))


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_projection_of_a_pretrained_encoder_starts_with_its_distances(pretrained: bool) -> None:
    tower = make().eval()
    tower.encoders["text"].pretrained = pretrained
    items = batch()
    values = tower.encoders["text"](items.content["text"])
    tower.standardise(items)
    standardise, linear, _ = tower.project["text"]
    centred = standardise(values)
    kept = linear(centred)
    # There are no more items than the projection has outputs, so that nothing of their distances needs to be lost.
    assert len(values) <= linear.out_features
    same = torch.allclose(torch.cdist(kept, kept), torch.cdist(centred, centred), atol=1e-4)
    assert same == pretrained
