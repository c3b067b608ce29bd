"""The first stage's section says what the log says, for logs of now and of before."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moyai.data import brain
from moyai.data.config import OasisConfig
from moyai.data.images import ImageSet
from moyai.evaluation import page, stagesection
from moyai.firststage import health
from moyai.firststage.codec import PixelCodec

OLD = [
    {"step": 5, "train": {"loss": 0.4, "reconstruction": 0.4}, "time": {"seconds": 1.0}},
    {"step": 5, "validation": {"l1": 0.4, "psnr": 12.0, "kl": 2.0}},
    {"step": 10, "validation": {"l1": 0.08, "psnr": 23.5, "kl": 3.0}},
]
GAN = {"adaptive weight": 3.0, "logits real": 4.0, "logits fake": -5.0}
NOW: list[dict[str, Any]] = [
    {
        "step": step,
        "validation": {
            "l1": 0.05,
            "psnr": 20.0 + step,
            "ssim": 0.85,
            "ms-ssim": 0.95,
            "ms-ssim scales": 2.0,
            "fine power": 0.3,
            "kl": 5.0,
            "unused channels": 0.0,
            "kl/0": 4.0,
            "kl/1": 6.0,
            "std/0": 0.01,
            "std/1": 0.5,
            "noise share/0": 0.001,
            "noise share/1": 0.4,
        },
    }
    for step in (5, 10)
]
NOW += [{"step": step, "train": {"loss": 1.0, **GAN}} for step in (8, 9)]
NOW += [{"step": 10, "train": {"loss": 1.0}}]


class Halved:
    """A model whose latents are the picture and whose reconstruction is half of it."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    def encode(self, images: torch.Tensor, fields: Any = None) -> torch.Tensor:
        return images

    def decode(self, latents: torch.Tensor, fields: Any = None) -> np.ndarray:
        return ((latents.permute(0, 2, 3, 1).numpy() + 1) / 4 * 255).astype(np.uint8)


class Codec:
    mean, std = torch.tensor([0.5, -2.0]), torch.tensor([1.5, 3.0])

    def shape(self) -> tuple[int, int, int]:
        return 2, 4, 4


def written(folder: Path, lines: list[dict[str, Any]]) -> Path:
    (folder / "first_stage").mkdir()
    (folder / stagesection.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def blocks(folder: Path, codec: Any = None) -> list[page.Block]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8)).astype(np.uint8)
    held_out = ImageSet(pixels, {}, (), ["a", "b", "c"], ())
    model: Any = Halved(codec or Codec())
    return stagesection.blocks(folder, model, held_out, folder)


def tables(found: list[page.Block]) -> dict[str, page.Table]:
    return {str(block.headers[0]): block for block in found if isinstance(block, page.Table)}


def titles(found: list[page.Block]) -> list[str]:
    svgs = [block.svg for block in found if isinstance(block, page.Chart)]
    return [re.search(r'aria-label="([^:"]+)', svg).group(1) for svg in svgs]  # type: ignore[union-attr]


def test_a_log_of_now_has_instruments_warnings_curves_and_channels(tmp_path: Path) -> None:
    found = blocks(written(tmp_path, NOW))
    assert (tmp_path / "reconstructions.png").is_file()
    assert isinstance(found[0], page.Picture)
    text = next(block.text for block in found if isinstance(block, page.Text))
    assert "PSNR 30.0 dB" in text
    assert "2 x 4 x 4" in text
    assert "alone is no sampler" in text
    values = {**NOW[1]["validation"], **GAN}
    said = [block.text for block in found if isinstance(block, page.Warning)]
    assert said == [f"{sentence}." for sentence in health.judge(values)]
    assert len(said) == 3  # fine power, noise, the discriminator
    rows = {str(row[0]): row for row in tables(found)["instrument"].rows}
    assert rows["psnr"][1:4] == ("30", "dB", "at least 20")
    assert rows["ms-ssim"][2] == "scales: 2"
    assert rows["noise share"][1:4] == ("0.4", "channel 1", "at most 0.2")
    assert rows["fine power"][3] == "0.8 to 1.2"
    assert rows["logits gap"][1] == "9"
    assert set(rows) == {one.name for one in health.INSTRUMENTS if one.values(health.derived(values))}
    channels = tables(found)["channel"]
    assert channels.headers[3:] == ("KL", "posterior deviation", "noise share")
    assert list(channels.rows) == [
        ("0", "0.5000", "1.5000", "4", "0.01", "0.001"),
        ("1", "-2.0000", "3.0000", "6", "0.5", "0.4"),
    ]
    assert {"PSNR", "SSIM", "KL", "Fine power", "Adaptive weight"} <= set(titles(found))
    assert "Perplexity" not in titles(found)
    page.page("title", "", [page.Section("First stage", found)])


def test_what_the_discriminator_says_of_held_out_pictures_goes_before_what_it_said_in_training(tmp_path: Path) -> None:
    held_out = {"logits real": 0.25, "logits fake": -0.5}
    lines = [{**line, "validation": {**line["validation"], **held_out}} for line in NOW[:2]] + NOW[2:]
    values = stagesection.last_values(written(tmp_path, lines) / stagesection.LOG)
    assert {name: values[name] for name in GAN} == {**GAN, **held_out}
    shown = titles(blocks(tmp_path))
    assert [title for title in shown if "logits" in title] == [
        html.escape(f"Discriminator's logits{where}") for where in ("", ", held out")
    ]


@pytest.mark.parametrize(("channels", "kind"), [(1, np.uint8), (3, np.uint8), (4, np.uint8), (4, np.uint16)])
def test_the_difference_is_seen_whatever_the_channels(channels: int, kind: type, tmp_path: Path) -> None:
    """Of pictures that are opaque in both rows; with the alpha of a difference nothing would be seen."""
    top = int(np.iinfo(kind).max)
    pixels = np.random.default_rng(0).integers(0, top, (3, channels, 8, 8)).astype(kind)
    pixels[:, 3:] = top
    said = stagesection._reconstructions(_Opaque(top), ImageSet(pixels, {}, (), ["a", "b", "c"], ()), tmp_path)  # type: ignore[arg-type]
    assert "distance" in said.alt
    with Image.open(tmp_path / "reconstructions.png") as drawn:
        assert (drawn.mode == "RGBA") == (channels == 4)
        if channels == 4:
            assert np.asarray(drawn)[..., 3].min() == 255


class _Opaque(Halved):
    def __init__(self, top: int) -> None:
        super().__init__(None)
        self.top = top

    def decode(self, latents: torch.Tensor, fields: Any = None) -> np.ndarray:
        made = (latents.permute(0, 2, 3, 1).numpy() + 1) / 4 * self.top
        made[..., 3:] = self.top
        return made.astype(np.uint8 if self.top == 255 else np.uint16)


def test_a_log_of_before_still_renders(tmp_path: Path) -> None:
    found = blocks(written(tmp_path, OLD))
    assert [str(row[0]) for row in tables(found)["instrument"].rows] == ["l1", "psnr", "kl"]
    assert tables(found)["channel"].headers == ("channel", "mean", "standard deviation")
    assert titles(found) == ["PSNR", "KL"]
    assert not [block for block in found if isinstance(block, page.Warning)]
    page.page("title", "", [page.Section("First stage", found)])


@pytest.mark.parametrize("lines", [[], OLD[:1]])
def test_a_log_without_a_validation_has_pictures_and_statistics_only(tmp_path: Path, lines: list[Any]) -> None:
    found = blocks(written(tmp_path, lines))
    assert [type(block) for block in found] == [page.Picture, page.Text, page.Table]


def test_pixels_have_no_first_stage(tmp_path: Path) -> None:
    assert blocks(tmp_path, PixelCodec((1, 8, 8))) == []


def test_after_the_decoder_was_trained_further_its_log_speaks(tmp_path: Path) -> None:
    written(tmp_path, NOW)
    further = json.loads(json.dumps(NOW))
    further[1]["validation"]["psnr"] = 35.0
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in further))
    assert stagesection.log_of(tmp_path) == tmp_path / stagesection.LOG  # it is not finished
    (tmp_path / "decoder" / "model").mkdir()
    text = next(block.text for block in blocks(tmp_path) if isinstance(block, page.Text))
    assert "PSNR 35.0 dB" in text


def test_a_blur_stands_beside_what_is_measured_in_a_box(real_data: Path, tmp_path: Path) -> None:
    """One pixel's blur of brain slices: 0.956 on the frame and 0.884 in the box (measured by torchmetrics)."""
    config = OasisConfig(root=real_data / "brain", resolution=128)
    images = brain.read(config, tmp_path)
    assert images.held_out is not None
    held_out = images.subset(np.flatnonzero(images.held_out))
    (found,) = stagesection.beside_a_blur({"box ssim": 0.9, "ssim": 0.95, "psnr": 30.0}, held_out)
    assert isinstance(found, page.Table)
    assert found.rows[0][:4] == ("reconstruction", "30", "0.95", "0.9")
    _, psnr, frame, box, power = found.rows[1]
    assert float(frame) == pytest.approx(0.956, abs=0.006)
    assert float(box) == pytest.approx(0.884, abs=0.012)
    assert float(psnr) > 20
    assert float(power) < 0.2
    assert stagesection.beside_a_blur({"ssim": 0.95}, held_out) == []
