"""avrec.towers.fusion: what an item lacks contributes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avrec.towers.fusion import AttentionFusion, ConcatFusion, GatedFusion, MeanFusion

M, D = 3, 8
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
KINDS = [ConcatFusion, MeanFusion, GatedFusion, AttentionFusion]


def make(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    fusion = kind(M, D)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.5)
    return fusion.eval()


def values_and_changed() -> tuple[Tensor, Tensor]:
    values_UMD = torch.randn(len(PRESENT), M, D, generator=torch.Generator().manual_seed(1))
    return values_UMD, values_UMD.masked_fill(~PRESENT.unsqueeze(-1), 1e4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_modality_contributes_nothing(kind: Any) -> None:
    fusion = make(kind)
    results = []
    for values_UMD in values_and_changed():
        values_UMD.requires_grad_()
        fused_UD = fusion(values_UMD, PRESENT)
        target_UD = torch.linspace(-1, 1, fused_UD.numel()).view_as(fused_UD)
        gradients = torch.autograd.grad((fused_UD * target_UD).sum(), [values_UMD, *fusion.parameters()])
        results.append([fused_UD, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        assert torch.isfinite(one).all()
    assert (results[0][1][~PRESENT] == 0).all()
    assert (results[0][1][PRESENT].abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_present_is_read_and_items_do_not_mix(kind: Any) -> None:
    fusion = make(kind)
    values_UMD, _ = values_and_changed()
    fused_UD = fusion(values_UMD, PRESENT)
    changed = values_UMD.clone()
    changed[0, 1] *= -1
    again_UD = fusion(changed, PRESENT)
    assert not torch.allclose(fused_UD[0], again_UD[0])
    torch.testing.assert_close(fused_UD[1:], again_UD[1:])
    torch.testing.assert_close(fusion(values_UMD[2:], PRESENT[2:]), fused_UD[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_inference_gives_the_training_graphs_numbers(kind: Any) -> None:
    """torch has fast paths of its own where no gradient is asked for."""
    fusion = make(kind)
    values_UMD, _ = values_and_changed()
    with torch.inference_mode():
        quick = fusion(values_UMD, PRESENT)
    assert torch.isfinite(quick).all()
    torch.testing.assert_close(quick, fusion(values_UMD, PRESENT), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ConcatFusion, {"hidden": 5, "dropout": 0.3}),
        (MeanFusion, {}),
        (GatedFusion, {}),
        (AttentionFusion, {"heads": 2}),
    ],
)
def test_is_rebuilt_from_its_options(kind: Any, arguments: dict[str, Any]) -> None:
    fusion = kind(M, D, **arguments)
    assert fusion.options() == arguments
    again = kind(M, D, **fusion.options())
    again.load_state_dict(fusion.state_dict())
    values_UMD, _ = values_and_changed()
    assert torch.equal(again.eval()(values_UMD, PRESENT), fusion.eval()(values_UMD, PRESENT))


def test_mean_is_the_mean_and_learns_whom_to_trust() -> None:
    fusion = MeanFusion(M, D)
    values_UMD, _ = values_and_changed()
    fused_UD = fusion(values_UMD, PRESENT)
    torch.testing.assert_close(fused_UD[0], values_UMD[0].mean(0))
    torch.testing.assert_close(fused_UD[1], (values_UMD[1, 0] + values_UMD[1, 2]) / 2)
    assert (fused_UD[3] == 0).all()
    nn.init.constant_(fusion.logit_M, 0.0)
    fusion.logit_M.data[0] = torch.tensor(3.0).log()
    torch.testing.assert_close(fusion(values_UMD, PRESENT)[1], values_UMD[1, 0] * 0.75 + values_UMD[1, 2] * 0.25)


def test_gates_against_a_loop() -> None:
    fusion = make(GatedFusion)
    values_UMD, _ = values_and_changed()
    fused_UD = fusion(values_UMD, PRESENT)
    for u in range(3):
        kept = [values_UMD[u, m] if PRESENT[u, m] else torch.zeros(D) for m in range(M)]
        gate = (fusion.gate(torch.cat([*kept, PRESENT[u].float()]))).exp() * PRESENT[u]
        expected = sum(gate[m] / gate.sum() * fusion.transform[m](kept[m]).tanh() for m in range(M))
        torch.testing.assert_close(fused_UD[u], expected)
