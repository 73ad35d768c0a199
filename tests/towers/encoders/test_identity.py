"""avrec.towers.encoders.identity: a vector per item, and one for the unknown."""

import torch

from avrec.towers.encoders.identity import IdentityEncoder


def test_row_0_is_the_unknown_item() -> None:
    encoder = IdentityEncoder(4, 3).eval()
    rows = torch.tensor([0, 4, 2, 0])
    assert torch.equal(encoder({"row": rows}), encoder.table.weight[rows])
    assert encoder.table.num_embeddings == 5


def test_items_are_unknown_at_the_rate_in_training_alone() -> None:
    """50,000 items: the share to 0.01."""
    torch.manual_seed(0)
    encoder = IdentityEncoder(4, 2, unknown_rate=0.2).train()
    encoder.table.weight.data = torch.arange(5.0)[:, None].expand(5, 2).clone()
    rows = torch.arange(1, 5).repeat(12_500)
    seen = encoder({"row": rows})[:, 0].long()
    assert abs(float((seen == 0).float().mean()) - 0.2) < 0.01
    assert torch.equal(seen[seen > 0], rows[seen > 0])
    assert torch.equal(encoder.eval()({"row": rows})[:, 0].long(), rows)


def test_the_network_is_rebuilt_from_its_options() -> None:
    one = IdentityEncoder(4, 3, unknown_rate=0.5)
    other = IdentityEncoder(**one.options())
    other.load_state_dict(one.state_dict())
    assert other.unknown_rate == 0.5
