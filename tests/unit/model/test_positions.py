import torch

from sparsight.model.positions import DIM, encode_positions


def test_a_token_has_the_same_position_whatever_else_is_kept() -> None:
    whole = encode_positions((3, 4, 5))
    keep = torch.tensor([[0, 17, 59], [17, 18, 19]])
    assert whole.shape == (60, DIM)
    assert torch.equal(encode_positions((3, 4, 5), keep), whole[keep])


def test_every_place_is_told_apart() -> None:
    whole = encode_positions((12, 24, 24))
    assert len(torch.unique((whole * 1e4).round(), dim=0)) == 12 * 24 * 24


def test_a_position_is_a_share_of_the_study_not_a_count() -> None:
    wide, tall, deep = encode_positions((1, 9, 25)), encode_positions((1, 25, 9)), encode_positions((7, 9, 9))
    centre = wide[4 * 25 + 12]
    assert torch.allclose(tall[12 * 9 + 4], centre, atol=1e-5)
    assert torch.allclose(deep[3 * 81 + 40], centre, atol=1e-5)
