"""DINOv2 and CLIP from a folder: features and prepared pictures are transformers' own, and bad folders are one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from moyai.errors import CheckpointError, DataError, RequestError
from moyai.evaluation import embeddings
from moyai.evaluation.features import extract, to_images

transformers = pytest.importorskip("transformers", exc_type=ImportError)

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DINO = {  # as published, at a quarter of the size
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "BitImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 64},
}
CLIP = {  # the oldest published form: plain numbers, no rescale
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


def randomised(net: Any) -> Any:
    """All weights drawn anew, those that begin at 0 or 1 too, so that nothing is left out of the comparison."""
    torch.manual_seed(0)
    with torch.no_grad():
        for values in net.parameters():
            values.normal_(1 if values.ndim == 1 else 0, 0.3)
    return net.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind as transformers saves it."""
    home = tmp_path_factory.mktemp("embeddings")
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)
    text = {**SMALL, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    nets = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, image_size=56, patch_size=14)),
        "clip": transformers.CLIPVisionModel(vision),
        "whole": transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision.to_dict(), text_config=text)),
    }
    for name, net in nets.items():
        randomised(net).save_pretrained(home / name)
        told = DINO if name == "dinov2" else CLIP
        (home / name / "preprocessor_config.json").write_text(json.dumps(told))
    return {name: home / name for name in nets}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the DINOv2 folder that may be spoilt."""
    return Path(shutil.copytree(folders["dinov2"], tmp_path / "dinov2"))


def pictures(channels: int = 3, height: int = 40, width: int = 33, count: int = 3) -> np.ndarray:
    """Smooth pictures with edges and noise, (N, C, H, W) uint8."""
    b, c, y, x = np.mgrid[:count, :channels, :height, :width]
    noise = np.random.default_rng(0).integers(0, 40, b.shape)
    return ((x * (3 + b) + y * (5 + c) + (x // 4 + y // 6 + b) % 2 * 90 + noise) % 256).astype(np.uint8)


def theirs(kind: str, folder: Path) -> Any:
    made = transformers.Dinov2Model if kind == "dinov2" else transformers.CLIPVisionModel
    return made.from_pretrained(folder, local_files_only=True).eval()


@pytest.mark.parametrize(("kind", "name"), [("dinov2", "dinov2"), ("clip", "clip"), ("clip", "whole")])
@torch.no_grad()
def test_features_are_the_pooled_output_of_transformers(folders: dict[str, Path], kind: str, name: str) -> None:
    extractor = embeddings.load(kind, folders[name])  # type: ignore[arg-type]
    images = to_images(pictures())
    expected = theirs(kind, folders[name])(pixel_values=extractor.preparation(images)).pooler_output
    found = extractor(images)
    assert found.shape == (3, 16)
    assert float(expected.std()) > 0.05  # the weights do something
    assert float((found[0] - found[1]).abs().max()) > 1e-3  # and see the picture
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert extract(extractor, pictures()).values.shape == (3, 16)
    assert extractor.probabilities(found) is None


@pytest.mark.parametrize(("height", "width"), [(40, 33), (33, 40), (100, 70), (64, 64), (57, 200)])
@pytest.mark.parametrize("told", [DINO, CLIP, {**DINO, "size": {"height": 60, "width": 70}, "resample": 2}])
def test_pictures_are_prepared_as_transformers_prepares_them(
    tmp_path: Path, told: dict[str, Any], height: int, width: int
) -> None:
    module = pytest.importorskip("transformers.models.bit.image_processing_pil_bit", exc_type=ImportError)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    prepared = embeddings.read_preparation(tmp_path / "preprocessor_config.json")(to_images(pictures(3, height, width)))
    known = {name: values for name, values in told.items() if not name.endswith("_type")}
    processor = module.BitImageProcessorPil(**known)
    rows = list(pictures(3, height, width).transpose(0, 2, 3, 1))
    expected = processor(rows, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    torch.testing.assert_close(prepared, expected, atol=1e-5, rtol=0)


def test_grey_and_deep_pictures_become_8_bit_rgb(folders: dict[str, Path]) -> None:
    extractor = embeddings.load("dinov2", folders["dinov2"])
    grey = pictures(1)
    images = to_images(grey)
    with torch.no_grad():
        assert extractor(images).equal(extractor(images.repeat(1, 3, 1, 1)))
        assert extractor(to_images(grey.astype(np.uint16) * 257)).equal(extractor(images))
    with pytest.raises(DataError, match=r"takes pictures \(B, 1 or 3, H, W\), not \(1, 4, 8, 8\)"):
        extractor(torch.zeros(1, 4, 8, 8))


def test_the_name_says_how_pictures_are_prepared_and_the_hash_is_of_the_weights(folder: Path) -> None:
    source = embeddings.load("dinov2", folder).source
    assert source.name == (
        "DINOv2 2 x 16, patch 14 (bicubic to a shorter side of 64, antialiased, rounded to 8 bits; the middle 56 x 56; "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225; pooled output, of stored integers)"
    )
    assert source.dimensions == 16
    (folder / "preprocessor_config.json").write_text(json.dumps({**DINO, "resample": 2}))
    other = embeddings.load("dinov2", folder).source
    assert other.digest == source.digest
    assert "bilinear" in other.name
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["layernorm.bias"][0] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert embeddings.load("dinov2", folder).source.digest != other.digest


def test_no_other_package_draws_bars_or_tables(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    embeddings.load("clip", folders["whole"])  # whose text tower is left over
    assert capfd.readouterr() == ("", "")


def spoil(folder: Path, name: str, change: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json; possible: a folder as published for transformers"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("model.safetensors", "has no model.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message) as error:
        embeddings.load("dinov2", folder)
    assert "\n" not in str(error.value)


def test_wrong_folders_are_refused_in_one_line(folders: dict[str, Path], folder: Path) -> None:
    with pytest.raises(RequestError, match=r"type 'dinov2', not clip; possible: clip, clip_vision_model"):
        embeddings.load("clip", folder)
    with pytest.raises(RequestError, match="type 'clip_vision_model', not dinov2; possible: dinov2"):
        embeddings.load("dinov2", folders["clip"])
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which moyai does not read"):
        embeddings.load("dinov2", folder)
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as dinov2") as error:
        embeddings.load("dinov2", folder)
    assert "\n" not in str(error.value)
    tensors: dict[str, Tensor] = safetensors.torch.load(weights)
    del tensors["layernorm.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not a whole dinov2 model; missing: layernorm\.weight"):
        embeddings.load("dinov2", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.5]}, "does not say how pictures are prepared"),
        ({"resample": 77}, "does not say how pictures are prepared"),
        ({"size": {"width": 3}}, "does not say how pictures are prepared"),
        ({"image_std": [0, 0, 0]}, "does not say how pictures are prepared"),
    ],
)
def test_a_preparation_that_cannot_be_read_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    spoil(folder, "preprocessor_config.json", change)
    with pytest.raises(CheckpointError, match=message):
        embeddings.load("dinov2", folder)


def test_sizes_the_network_does_not_take_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    clip = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    spoil(clip, "preprocessor_config.json", {"size": 48, "crop_size": 48})
    with pytest.raises(DataError, match="does not take these pictures"):
        embeddings.load("clip", clip)(to_images(pictures()))
    spoil(clip, "preprocessor_config.json", {"size": 24, "crop_size": 32})
    with pytest.raises(DataError, match="have no middle of 32 x 32"):
        embeddings.load("clip", clip)(to_images(pictures()))
