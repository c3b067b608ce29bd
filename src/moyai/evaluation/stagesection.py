"""The first stage as a reader of the report sees it: pictures, what is wrong, the instruments, their curves, channels.

Made from the model, the held-out pictures, and the first stage's log; a log of an earlier version has fewer numbers,
and shows those. What the instruments are is in `firststage.instruments`, what they say in `firststage.health`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moyai import log, pictures
from moyai.data.images import ImageSet, to_uint
from moyai.evaluation import curves, page
from moyai.firststage import health
from moyai.firststage.codec import PixelCodec
from moyai.firststage.instruments import Measurement, blurred
from moyai.model import LatentModel

COLUMNS = 10
FROM_TRAINING = ("adaptive weight", "logits real", "logits fake")  # where no validation says them
LOG = Path("first_stage") / "log.jsonl"
BLUR = 1.0  # pixels: what the original is blurred by beside the reconstruction
MEASURED = 512  # held-out pictures that the blur is measured on, at most: as many as a validation's
# One chart each: title, kind of line in the log, quantities, the axis.
CURVES = (
    ("PSNR", "validation", ("psnr",), "dB"),
    ("SSIM", "validation", ("ssim", "ms-ssim", "box ssim"), "likeness"),
    ("Perceptual distance", "validation", ("perceptual",), "distance"),
    ("Fine power", "validation", ("fine power",), "of the originals'"),
    ("KL", "validation", ("kl",), "nats a latent value"),
    ("Perplexity", "validation", ("perplexity", "perplexity top", "perplexity bottom"), "codes"),
    ("Discriminator's logits", "train", ("logits real", "logits fake"), "logit"),
    ("Discriminator's logits, held out", "validation", ("logits real", "logits fake"), "logit"),
    ("Adaptive weight", "train", ("adaptive weight",), "weight"),
)
NO_SAMPLER = "The first stage alone is no sampler: noise decoded by it is noise."


def blocks(run: Path, model: LatentModel, held_out: ImageSet, folder: Path) -> list[page.Block]:
    """The section's blocks; [] where the prior lives in pixels. Leaves `reconstructions.png` in `folder`."""
    if isinstance(model.codec, PixelCodec):
        return []
    path = log_of(run)
    values = last_values(path)
    shape = " x ".join(str(n) for n in model.codec.shape())
    quality = f"PSNR {values['psnr']:.1f} dB on held-out pictures. " if "psnr" in values else ""
    found: list[page.Block] = [_reconstructions(model, held_out, folder)]
    found.append(page.Text(f"{quality}Latents are {shape}. {NO_SAMPLER}"))
    found += [page.Warning(f"{said}.") for said in health.judge(values)]
    found += table(values)
    found += beside_a_blur(values, held_out)
    found += charts(path)
    return [*found, channels(model.codec.mean.tolist(), model.codec.std.tolist(), values)]


def log_of(run: Path) -> Path:
    """The log that speaks of the decoder in use: that of its further training, where there was one."""
    further = run / "decoder"
    return further / "log.jsonl" if (further / "model").is_dir() else run / LOG


def beside_a_blur(values: Mapping[str, float], held_out: ImageSet) -> list[page.Block]:
    """Where likeness is also measured in the box of what is not background: the same of the original blurred, which
    the likeness of the whole frame alone would let pass; [] elsewhere."""
    if "box ssim" not in values:
        return []
    measured = Measurement(boxed=True)
    index = np.linspace(0, held_out.count - 1, min(MEASURED, held_out.count)).astype(np.int64)
    for rows in np.array_split(index, -(-len(index) // 64)):
        images = held_out.images(rows)
        groups = None if held_out.groups is None else held_out.groups[rows]
        measured.add(images, blurred(images, BLUR), groups=groups)
    names = ("psnr", "ssim", "box ssim", "fine power")
    lines = {"reconstruction": values, f"original blurred by {BLUR:g} pixel": measured.result()}
    rows_of = tuple((what, *(_number(found.get(name)) for name in names)) for what, found in lines.items())
    note = "A blur scores high on the whole frame, which is mostly background: look at the box and at the fine power."
    return [page.Table(("", *names), rows_of, "Beside a blur", note)]


def last_values(path: Path) -> dict[str, float]:
    """What the log last says of every instrument: its last validation, and what training alone knows."""
    values: dict[str, float] = {}
    for line in log.read(path):
        values = dict(line.get("validation", values))
    for name in (name for name in FROM_TRAINING if name not in values):
        _, series = log.series(path, "train", name)
        if series:
            values[name] = series[-1]
    return values


def table(values: Mapping[str, float]) -> list[page.Block]:
    """Instrument, value, healthy range and meaning of all there is; [] where there is nothing."""
    known = health.derived(values)
    rows = _rows(known, "")
    for name, own in health.of_maps(known).items():
        rows += _rows(own, f" {name}")
    if not rows:
        return []
    headers = ("instrument", "value", "unit", "healthy", "meaning")
    note = "On held-out pictures with the averaged weights, from the posterior's mode; the adaptive weight in training."
    return [page.Table(headers, tuple(rows), "Instruments of the first stage", note)]


def _rows(known: Mapping[str, float], which: str) -> list[tuple[str, ...]]:
    """Of the values of one map of codes, or of all that is of none; which: added to the instruments' names."""
    rows: list[tuple[str, ...]] = []
    for instrument in health.INSTRUMENTS:
        found = instrument.values(known)
        if not found:
            continue
        name, value = max(found.items(), key=lambda item: item[1])
        where = f"channel {name.rpartition('/')[2]}" if instrument.by_channel else ""
        unit = instrument.unit or where
        if name == "ms-ssim" and "ms-ssim scales" in known:
            unit = f"scales: {known['ms-ssim scales']:.0f}"
        healthy = _range(*instrument.healthy(known))
        rows.append((instrument.name + which, _number(value), unit, healthy, instrument.meaning))
    return rows


def charts(path: Path) -> list[page.Block]:
    """The instruments over the run, those that were taken at more than one step."""
    found: list[page.Block] = []
    for title, kind, names, label in CURVES:
        series = [curves.Series(name, *log.series(path, kind, name)) for name in names]
        series = [one for one in series if len(one.x) > 1]
        if series:
            svg = curves.chart(series, title=title, x_label="step", y_label=label)
            where = "held-out pictures" if kind == "validation" else "training steps"
            found.append(page.Chart(svg, f"{title} of {where} over the run."))
    return found


def channels(mean: Sequence[float], std: Sequence[float], values: Mapping[str, float]) -> page.Table:
    """The latents by channel: the statistics the prior's space is made with, and what was measured of each."""
    told = {"KL": "kl", "posterior deviation": "std", "noise share": "noise share"}
    more = {header: name for header, name in told.items() if f"{name}/0" in values}
    rows = tuple(
        (str(c), f"{m:.4f}", f"{s:.4f}", *(_number(values.get(f"{name}/{c}")) for name in more.values()))
        for c, (m, s) in enumerate(zip(mean, std, strict=True))
    )
    note = (
        "KL: nats a value on held-out pictures; the deviation is the posterior's, a mean; noise share is its part in "
        "what the decoder is given."
    )
    return page.Table(
        ("channel", "mean", "standard deviation", *more),
        rows,
        "The latents' statistics, measured over the training set; the prior sees them at mean 0, deviation 1.",
        note if more else "",
    )


def _reconstructions(model: LatentModel, held_out: ImageSet, folder: Path) -> page.Picture:
    index = np.linspace(0, held_out.count - 1, min(COLUMNS, held_out.count)).astype(np.int64)
    batch = held_out.batch(index)
    images = held_out.images(index)
    originals = to_uint(images, bits=held_out.bits)
    again = model.decode(model.encode(images, batch.fields), batch.fields)
    difference = np.abs(originals.astype(np.int64) - again.astype(np.int64)).astype(originals.dtype)
    if difference.shape[-1] == 4:
        difference[..., 3] = 2**held_out.bits - 1  # equal where both are opaque: the colours' would not be seen
    rows = np.concatenate([originals, again, difference])
    sheet = pictures.grid(rows, columns=len(index), row_labels=("original", "reconstruction", "difference"))
    pictures.save_png(folder / "reconstructions.png", sheet, None)
    return page.Picture(
        pictures.png_bytes(sheet, None),
        "image/png",
        "Held-out pictures",
        "originals, their reconstructions, and the distance of the two",
    )


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "-"
    if low is None or high is None:
        return f"at least {low:.4g}" if high is None else f"at most {high:.4g}"
    return f"{low:.4g} to {high:.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
