"""What the instruments of a first stage say: healthy ranges, and a plain sentence outside of them.

The ranges are wide on purpose: outside of one something is wrong, not merely improvable. That of fine power is narrow,
because no other number tells a blur. How each number is taken is in `instruments`; the adaptive weight is known in
training only, a part of its own log (`rivalry`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Values = Mapping[str, float]
MAPS = ("top", "bottom")  # of codes, where a first stage has two


@dataclass(frozen=True)
class Instrument:
    """A number with its healthy range [low, high] (None: open) and what to say below and above it.

    A sentence may name any value in braces, {value} in the instrument's own unit, {percent} of it, and {where}: the
    channels it is about. by_channel: the value stands under "name/0", "name/1", ... reach: what the range is in parts
    of, None where it is not known.
    """

    name: str
    unit: str
    low: float | None
    high: float | None
    meaning: str
    below: str = ""
    above: str = ""
    by_channel: bool = False
    reach: Callable[[Values], float | None] | None = None

    def values(self, values: Values) -> dict[str, float]:
        """What there is of it, by the name it stands under."""
        if self.by_channel:
            return {name: value for name, value in values.items() if name.startswith(f"{self.name}/")}
        return {self.name: values[self.name]} if self.name in values else {}

    def healthy(self, values: Values) -> tuple[float | None, float | None]:
        """The range, in the unit of the value."""
        scale = 1.0 if self.reach is None else self.reach(values)

        def scaled(end: float | None) -> float | None:
            return None if end is None or scale is None else end * scale

        return scaled(self.low), scaled(self.high)

    def sentences(self, values: Values) -> list[str]:
        """What to say, one sentence for each side of the range that is left."""
        found, (low, high) = self.values(values), self.healthy(values)
        said = [f"{name} is not a finite number" for name, value in found.items() if not math.isfinite(value)]
        for end, side, sign in ((low, self.below, -1), (high, self.above, 1)):
            out = {n: v for n, v in found.items() if end is not None and sign * v > sign * end and math.isfinite(v)}
            if out:
                worst = max(out.values(), key=lambda value: sign * value)
                where = " and ".join(f"{_percent(v)} in channel {n.rpartition('/')[2]}" for n, v in out.items())
                own = {"value": worst, "percent": _percent(worst), "where": where}
                said.append(side.format_map({**values, **own}))
        return said


def derived(values: Values) -> dict[str, float]:
    """The values, and what follows from them: "logits gap", of real pictures over reconstructions."""
    found = dict(values)
    if {"logits real", "logits fake"} <= found.keys():
        found["logits gap"] = found["logits real"] - found["logits fake"]
    return found


def judge(values: Values) -> list[str]:
    """The sentences of the instruments that are out of their range; [] where all is well. Unknown names are ignored."""
    known = derived(values)
    said = [sentence for instrument in INSTRUMENTS for sentence in instrument.sentences(known)]
    for name, own in of_maps(known).items():
        said += [f"{name} map: {sentence}" for instrument in INSTRUMENTS for sentence in instrument.sentences(own)]
    return said


def of_maps(values: Values) -> dict[str, dict[str, float]]:
    """What there is of each map of codes, by plain names: "perplexity top" is the "perplexity" of "top"."""
    ends = {name: f" {name}" for name in MAPS}
    found = {m: {n.removesuffix(end): v for n, v in values.items() if n.endswith(end)} for m, end in ends.items()}
    return {name: own for name, own in found.items() if own}


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _alike(values: Values) -> float | None:
    """The share of codes that so many choices would reach if all codes were alike."""
    if not {"codes", "choices"} <= values.keys():
        return None
    return -math.expm1(values["choices"] * math.log1p(-1 / values["codes"])) if values["codes"] > 1 else 1.0


def _most(values: Values) -> float | None:
    """The greatest perplexity that so many choices can have."""
    return min(values["codes"], values["choices"]) if {"codes", "choices"} <= values.keys() else None


_MORE = "train longer, or more first_stage.net.latent_channels, or a smaller first_stage.net.factor"
_CODES = "first_stage.codebook.size (or product of first_stage.grid.levels)"
_RIVAL = "first_stage.objective.adversarial"
INSTRUMENTS = (
    Instrument(
        "l1",
        "of a range of 2",
        None,
        0.1,
        "mean distance of a value from the original's",
        above=f"reconstructions are {{value:.2g}} away from the originals, on a range of 2: {_MORE}",
    ),
    Instrument(
        "psnr",
        "dB",
        20,
        None,
        "peak signal to noise; the mean over pictures",
        below=f"reconstructions are coarse, {{value:.1f}} dB: {_MORE}",
    ),
    Instrument(
        "ssim",
        "",
        0.8,
        None,
        "likeness of local structure, 1 for equal pictures; forgives a blur",
        below=f"the structure of pictures is lost, SSIM {{value:.2f}}: {_MORE}",
    ),
    Instrument(
        "ms-ssim",
        "",
        0.9,
        None,
        "the same over several scales; compared at the same size only",
        below=f"the coarse structure of pictures is lost, MS-SSIM {{value:.2f}}: {_MORE}",
    ),
    Instrument(
        "box ssim",
        "",
        0.8,
        None,
        "SSIM in the box of what is not background, which is easy and counts in the frame's",
        below=f"the subject's structure is lost, SSIM {{value:.2f}} in its box: {_MORE}",
    ),
    Instrument(
        "perceptual",
        "",
        None,
        0.3,
        "distance in the features of a network, 0 for equal pictures",
        above="reconstructions look unlike the originals, perceptual distance {value:.2f}: train longer, or a greater "
        "first_stage.objective.perceptual.weight",
    ),
    Instrument(
        "fine power",
        "of the originals'",
        0.8,
        1.2,
        "power above half the Nyquist frequency: 1 is ideal, a blur is far below",
        below="less fine detail than the originals have, {value:.2g} of their power: raise "
        f"first_stage.objective.detail, or add {_RIVAL}",
        above="more fine detail than the originals have, {value:.2g} of their power: train longer, or a lower "
        f"{_RIVAL}.weight",
    ),
    Instrument(
        "kl",
        "nats a value",
        0.05,
        30,
        "how far the posterior is from the unit Gaussian",
        below="the latents say almost nothing, {value:.2g} nats a value: a lower first_stage.objective.kl.weight",
        above="the latents are far from the unit Gaussian, {value:.3g} nats a value: a greater "
        "first_stage.objective.kl.weight",
    ),
    Instrument(
        "noise share",
        "",
        None,
        0.2,
        "what part of a channel is posterior noise; the greatest of the channels",
        above="of what the decoder sees, {where} is noise: a lower first_stage.objective.kl.weight",
        by_channel=True,
    ),
    Instrument(
        "unused channels",
        "",
        None,
        0,
        "channels that say nothing of a picture",
        above="latent channels without use: {value:.0f}; fewer first_stage.net.latent_channels, or a lower "
        "first_stage.objective.kl.weight",
    ),
    Instrument(
        "codes used",
        "of all codes",
        0.5,
        None,
        "codes chosen at all; at least half as many as an even choice would reach",
        below=f"only {{percent}} of the codes are ever chosen: a smaller {_CODES}, or a greater "
        "first_stage.codebook.restart",
        reach=_alike,
    ),
    Instrument(
        "perplexity",
        "codes",
        0.05,
        None,
        "as many codes, chosen evenly, would say as much",
        below=f"few codes do nearly all the work, as {{value:.1f}} would: a smaller {_CODES}, or a greater "
        "first_stage.codebook.restart",
        reach=_most,
    ),
    Instrument(
        "adaptive weight",
        "",
        1e-3,
        1e3,
        "gradient of the reconstruction over that of the discriminator, at the decoder's last layer",
        below="the discriminator's gradient drowns that of the reconstruction, adaptive weight {value:.1g}: lower its "
        f"{_RIVAL}.learning_rate or raise {_RIVAL}.regularizer_weight",
        above="the discriminator gives no gradient, adaptive weight {value:.0f}: lower its "
        f"{_RIVAL}.learning_rate or raise {_RIVAL}.regularizer_weight",
    ),
    Instrument("logits real", "", None, None, "what the discriminator says of pictures"),
    Instrument("logits fake", "", None, None, "what it says of reconstructions; read both by their gap"),
    Instrument(
        "logits gap",
        "",
        -0.5,
        4,
        "pictures over reconstructions: near 0 they pass for each other",
        below="the discriminator takes reconstructions for pictures: logits {logits real:.2g} and {logits fake:.2g}; "
        f"raise its {_RIVAL}.learning_rate",
        above="the discriminator wins: logits {logits real:.2g} and {logits fake:.2g}; lower its "
        f'{_RIVAL}.learning_rate or set {_RIVAL}.regularizer to "r1"',
    ),
)
