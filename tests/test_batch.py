"""Batches and conditions: rows, routes, and what must not be mixed."""

import pytest
import torch

from moyai.batch import Batch, Cond


def batch() -> Batch:
    return Batch(
        torch.arange(5),
        torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2),
        {"mean": torch.arange(5.0)[:, None]},
        {"class": torch.tensor([3, 1, 4, 1, 5])},
    )


def cond(n: int = 3, *, start: float = 0.0, mask: bool = True) -> Cond:
    values = torch.arange(n, dtype=torch.float32) + start
    return Cond(
        vector=values[:, None].repeat(1, 2),
        context=values[:, None, None].repeat(1, 4, 2),
        mask=torch.ones(n, 4, dtype=torch.bool) if mask else None,
        concat=values[:, None, None, None].repeat(1, 1, 2, 2),
    )


def test_rows_are_taken_of_everything() -> None:
    part = batch().rows(1, 3)
    assert len(part) == 2
    assert part.index.tolist() == [1, 2]
    assert part.images is not None
    assert part.images[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert part.latents is not None
    assert part.latents["mean"].tolist() == [[1.0], [2.0]]
    assert part.fields["class"].tolist() == [1, 4]


def test_what_is_not_there_stays_away() -> None:
    part = Batch(torch.arange(3)).rows(0, 2).to("cpu")
    assert (part.images, part.latents, dict(part.fields)) == (None, None, {})


def test_routes_and_length() -> None:
    assert list(cond().routes()) == ["vector", "context", "mask", "concat"]
    assert (len(cond()), len(Cond())) == (3, 0)
    assert list(cond(mask=False).routes()) == ["vector", "context", "concat"]


def test_where_chooses_rows_of_every_route() -> None:
    keep = torch.tensor([True, False, True])
    mixed = cond().where(keep, cond(start=10.0))
    for name, route in mixed.routes().items():
        if name != "mask":
            assert route.flatten(1)[:, 0].tolist() == [0.0, 11.0, 2.0], name
        assert route.shape == cond().routes()[name].shape


def test_cat_and_rows_are_inverse() -> None:
    both = Cond.cat([cond(), cond(start=10.0)])
    for name, route in both.rows(3, 6).routes().items():
        assert torch.equal(route, cond(start=10.0).routes()[name])
    assert len(both) == 6


def test_conditions_of_other_routes_cannot_be_mixed() -> None:
    for mix in (lambda: Cond.cat([cond(), cond(mask=False)]), lambda: cond().where(torch.ones(3) > 0, Cond())):
        with pytest.raises(ValueError, match="cannot be mixed"):
            mix()


def test_dtypes_are_changed_but_the_masks() -> None:
    half = cond().to("cpu", torch.float16)
    assert {name: route.dtype for name, route in half.routes().items()} == {
        "vector": torch.float16,
        "context": torch.float16,
        "mask": torch.bool,
        "concat": torch.float16,
    }
