"""Conditions that are pictures: what of them reaches the latents' planes, and what the null knows."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moyai.conditioning.conditioner import Conditioner
from moyai.conditioning.config import ClassCondition, LowResolutionCondition, MapCondition, MaskedCondition
from moyai.conditioning.embeddings import ClassEmbedding
from moyai.conditioning.spatial import LowResolution, Masked, RegionMap, in_range, masked
from moyai.errors import DataError, RequestError
from moyai.randomness import Draw

PICTURE = (3, 12, 16)  # (C, H, W)
LATENTS = (3, 4)


def region_map(dropout: float = 0.1) -> RegionMap:
    return RegionMap(MapCondition(dropout=dropout), 3, LATENTS)


def low_resolution(factor: int) -> LowResolution:
    return LowResolution(LowResolutionCondition(factor=factor, dropout=0.1), PICTURE, LATENTS)


def stored(count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, *PICTURE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_map_is_the_share_of_each_region_in_each_place() -> None:
    regions = torch.randint(0, 3, (2, 12, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    planes = region_map()(regions, torch.tensor([True, False])).concat
    assert planes is not None
    assert planes.shape == (2, 4, *LATENTS)
    for region in range(3):
        for i, j in ((0, 0), (2, 3), (1, 2)):
            share = (regions[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] == region).float().mean()
            assert float(planes[0, region, i, j]) == pytest.approx(float(share))
    assert (planes[0, 3] == 1).all()
    assert (planes[1] == 0).all()  # not told: nothing of the map, and the mark is missing too


def test_maps_of_many_regions_are_laid_out_a_few_regions_at_a_time() -> None:
    regions = torch.randint(0, 256, (2, 9, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    planes = RegionMap(MapCondition(), 256, (4, 3))(regions, torch.ones(2, dtype=torch.bool)).concat
    shares = F.interpolate(F.one_hot(regions.long(), 256).movedim(-1, 1).float(), size=(4, 3), mode="area")
    assert planes is not None
    assert torch.equal(planes[:, :-1], shares)


@pytest.mark.parametrize("values", [np.zeros(3, np.float32), np.array(["a", "b"]), np.zeros((2, 4, 4), np.float32)])
def test_what_is_no_map_is_one_line(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="mask is to be a map of region numbers, which it is not"):
        region_map().prepare(values)
    assert region_map().prepare(np.zeros((2, 4, 4), np.uint8)).shape == (2, 4, 4)


@pytest.mark.parametrize(("factor", "channels"), [(2, 13), (4, 4), (8, 4)])
def test_a_small_picture_loses_nothing_on_the_way(factor: int, channels: int) -> None:
    made = low_resolution(factor)
    small = made.corrupt(stored(), Draw(0, 0, 4))
    height, width = -(-12 // factor), -(-16 // factor)
    assert small.shape == (4, 3, height, width)
    if 12 % factor == 0:  # the mean of what each small pixel covers
        wanted = in_range(stored())[1, 2, :factor, factor : 2 * factor].mean()
        assert float(small[1, 2, 0, 1]) == pytest.approx(float(wanted), abs=1e-6)
    planes = made(small, torch.ones(4, dtype=torch.bool)).concat
    assert planes is not None
    assert planes.shape == (4, channels, *LATENTS) == (4, made.concat_channels, *LATENTS)
    if factor == 2:
        assert torch.equal(F.pixel_shuffle(planes[:, :-1], 2), small)
    if factor == 4:
        assert torch.equal(planes[:, :-1], small)


def test_a_small_picture_of_another_size_is_refused() -> None:
    with pytest.raises(RequestError, match=r"3 channel\(s\), 3 x 4; given 3, 5 x 4"):
        low_resolution(4)(torch.zeros(1, 3, 5, 4), torch.ones(1, dtype=torch.bool))


def test_what_is_masked_is_not_seen_and_the_rest_is_seen_whole() -> None:
    made, picture = Masked(MaskedCondition(dropout=0.1), PICTURE, 4), stored(64)
    draw = Draw(3, 7, 64)
    values = made.corrupt(picture, draw)
    missing = values[:, -1:]
    assert set(missing.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(values[:, :-1], in_range(picture) * (1 - missing))
    share = missing.flatten(1).mean(1)
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.8
    altered = torch.where(missing.bool().expand_as(picture), 255 - picture, picture)
    assert torch.equal(made.corrupt(altered, draw), values)  # nothing of what is missing is left
    planes = made(values, torch.ones(64, dtype=torch.bool)).concat
    assert planes is not None
    assert planes.shape == (64, 64, *LATENTS)
    assert torch.equal(F.pixel_shuffle(planes, 4), values)
    part = made.corrupt(picture[8:20], Draw(3, 7, 64).rows(8, 20))
    assert torch.equal(part, values[8:20])


def test_the_null_of_a_masked_picture_is_one_that_is_missing_everywhere() -> None:
    made = Masked(MaskedCondition(dropout=0.1), PICTURE, 4)
    dropped = made(made.corrupt(stored(), Draw(0, 0, 4)), torch.zeros(4, dtype=torch.bool)).concat
    nothing = masked(in_range(stored()), torch.ones(4, 1, 12, 16))
    told = made(nothing, torch.ones(4, dtype=torch.bool)).concat
    assert dropped is not None
    assert told is not None
    assert torch.equal(dropped, told)
    with pytest.raises(RequestError, match="fills in pictures of 3"):
        made(torch.zeros(1, 4, 12, 12), torch.ones(1, dtype=torch.bool))


def test_planes_of_several_conditions_stand_side_by_side_and_drop_by_themselves() -> None:
    parts = {"map": region_map(0.5), "small": low_resolution(2), "class": ClassEmbedding(ClassCondition(width=4), 2)}
    made = Conditioner(parts)
    assert (made.concat_channels, made.vector_width, made.context_width) == (4 + 13, 4, 4)
    assert made.fields() == ("mask", "low_resolution", "class")
    fields = {"mask": torch.ones(400, 12, 16, dtype=torch.uint8), "low_resolution": stored(1).expand(400, -1, -1, -1)}
    cond = made.dropped(fields | {"class": torch.zeros(400, dtype=torch.int64)}, Draw(0, 1, 400))
    assert cond.concat is not None
    assert cond.concat.shape == (400, 17, *LATENTS)
    gone = int((cond.concat[:, 3] == 0).all((1, 2)).sum())
    assert abs(gone - 200) < 5 * math.sqrt(100)
    null = made.null(2).concat
    assert null is not None
    assert (null == 0).all()


def test_all_are_left_out_together_at_a_rate_of_their_own() -> None:
    made = Conditioner(
        {name: ClassEmbedding(ClassCondition(field=name, dropout=0.0), 2) for name in "ab"}, together=0.3
    )
    count = 10_000
    cond = made.dropped({name: torch.zeros(count, dtype=torch.int64) for name in "ab"}, Draw(0, 0, count)).vector
    null = made.null(1).vector
    assert cond is not None
    assert null is not None
    gone = (cond == null).unflatten(1, (2, -1)).all(2)  # (count, 2)
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert abs(int(gone[:, 0].sum()) - 3000) < 5 * math.sqrt(count * 0.3 * 0.7)


def test_guidance_nests_in_the_order_of_the_recipe() -> None:
    def of(name: str, guidance: float | None, dropout: float = 0.1) -> ClassEmbedding:
        return ClassEmbedding(ClassCondition(field=name, guidance=guidance, dropout=dropout, width=4), 2)

    made = Conditioner({"a": of("a", None), "b": of("b", 3.0), "c": of("c", None, dropout=0.0), "d": of("d", 3.0)})
    told = {name: torch.zeros(1, dtype=torch.int64) for name in "abcd"}
    assert made.guided_by(told, 2.0) == [(("c",), 1.0), (("c", "a"), 2.0), (("c", "a", "b", "d"), 3.0)]
    assert made.guided_by({"b": told["b"]}, 2.0) == [((), 1.0), (("b",), 3.0)]
    assert made.guided_by({}, 2.0) == [((), 1.0)]
    assert made.guided_by(told, 3.0) == [(("c",), 1.0), (("c", "a", "b", "d"), 3.0)]  # one weight is one step
