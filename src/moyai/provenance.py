"""The recipe of a picture as text: what made it travels inside the file.

Three forms, because three kinds of reader look for them:

* **moyai's own**: the recipe as JSON, lossless; `--like picture.png` makes the picture again from it.
* **the field's**: the line that stable-diffusion-webui writes and Civitai, Forge and InvokeAI read,

      a prompt
      Negative prompt: what to avoid
      Steps: 20, Sampler: ddim, CFG scale: 4.0, Seed: 7, Size: 32x32, Model hash: 9f3c, Model: digits

  Values that hold a comma, a colon or a newline are JSON strings; fewer than three pairs are not recognised.
* **the law's**: an XMP packet with IPTC's DigitalSourceType, `trainedAlgorithmicMedia`: made by a trained model; or
  `compositeWithTrainedAlgorithmicMedia`, where the model filled in a part of another picture.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

from moyai.version import __version__

KEY = "moyai"  # of the PNG text chunk, and the first word of the GIF comment

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

# our name of a value -> the field's name of it, in the order of the line
_FIELDS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "grid": "Schedule type",
    "guidance": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model_hash": "Model hash",
    "model": "Model",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
    "version": "Version",
}
_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # the readers' own expression


def to_json(recipe: Mapping[str, Any]) -> str:
    """The recipe as ASCII JSON on one line. NaN is refused: it is not JSON and no other reader takes it."""
    return json.dumps(dict(recipe), allow_nan=False, default=_plain)


def xmp(recipe: Mapping[str, Any]) -> str:
    """The law's packet; of a picture that has parts of another one, IPTC's word for such."""
    filled = "masked" in recipe.get("asked", {}) or any(one.get("missing") for one in recipe.get("originals", ()))
    return _XMP.format("compositeWithTrainedAlgorithmicMedia" if filled else "trainedAlgorithmicMedia")


def fingerprint(array: "np.ndarray") -> dict[str, Any]:
    """What a recipe tells of an array: its shape and the sha256 of its values, row by row."""
    return {"shape": list(array.shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}


def from_json(text: str) -> dict[str, Any]:
    recipe = json.loads(text)
    if not isinstance(recipe, dict):
        raise ValueError(f"a recipe is a JSON object, not {type(recipe).__name__}")
    return recipe


def parameters(recipe: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The field's lines for a recipe and a picture of `size` (width, height); empty where too little is known.

    Read from the recipe: prompt, negative_prompt, steps, sampler, grid, guidance, seed, model_hash, model, strength,
    clip_skip. A value that is itself a mapping stands for its `kind` or `name`.
    """
    known = {"size": f"{size[0]}x{size[1]}", "version": f"moyai {__version__}", **recipe}
    pairs = []
    for key, name in _FIELDS.items():
        value = known.get(key)
        if isinstance(value, Mapping):
            value = value.get("kind", value.get("name"))
        if isinstance(value, list | tuple):
            value = "x".join(str(v) for v in value) if key == "size" else None
        if value is not None and str(value) != "":
            pairs.append(f"{name}: {_quoted(str(value))}")
    if len(pairs) < 3:
        return ""
    lines = [str(recipe["prompt"])] if recipe.get("prompt") else []
    if recipe.get("negative_prompt"):
        lines.append(f"{_NEGATIVE} {recipe['negative_prompt']}")
    return "\n".join([*lines, ", ".join(pairs)])


def from_parameters(text: str) -> dict[str, Any]:
    """The recipe that the field's lines tell of, under our names where we have one; empty when they tell nothing."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        return {}
    ours = {name: key for key, name in _FIELDS.items()}
    recipe: dict[str, Any] = {ours.get(name, name): _number(_unquoted(value)) for name, value in pairs}
    at = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    prompt, negative = "\n".join(lines[:at]).strip(), "\n".join(lines[at:]).removeprefix(_NEGATIVE).strip()
    return {**({"prompt": prompt} if prompt else {}), **({"negative_prompt": negative} if negative else {}), **recipe}


def from_user_comment(raw: bytes) -> dict[str, Any]:
    """The recipe in an EXIF UserComment (JPEG, WebP): an 8-byte name of the encoding, then JSON or the lines."""
    code, body = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        text = body.decode("utf-16-be", "replace")  # what piexif and thus the field writes, whatever the byte order
    elif code in (b"ASCII\0\0\0", b"\0" * 8):
        text = body.decode("utf-8", "replace")
    else:
        text = raw.decode("utf-8", "replace")
    text = text.strip("\0 \n")
    return from_json(text) if text.startswith("{") else from_parameters(text)


def _plain(value: Any) -> Any:
    """What JSON has no word for: numbers of numpy, and paths by their name alone (a picture tells no folders)."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "__fspath__"):
        return value.name
    raise TypeError(f"a recipe of a picture cannot hold {type(value).__name__}")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n]|^"', value) else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or not (value[0] == value[-1] == '"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value  # a quote of the user's own, which other writers do not escape


def _number(value: str) -> int | float | str:
    if re.fullmatch(r"-?(0|[1-9]\d*)", value):
        return int(value)
    return float(value) if re.fullmatch(r"-?\d+\.\d+", value) else value
