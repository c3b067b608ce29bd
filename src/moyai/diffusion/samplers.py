"""The samplers by name, as `sampling.sampler` and `--sampler` say it; `METHODS` of `config.py` says what each takes."""

from functools import partial

from moyai.diffusion.multistep import deis, dpmpp_2m, dpmpp_3m, ipndm, lms, plms, unipc
from moyai.diffusion.sampling import Sampler, ddpm, dpm2, dpmpp_2s, euler, heun

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_3m_exact": partial(dpmpp_3m, exact=True),
    "unipc": unipc,
    "unipc_3": partial(unipc, order=3),
    "lms": lms,
    "deis": deis,
    "plms": plms,
    "ipndm": ipndm,
    "ddpm": ddpm,
    "ddpm_small": partial(ddpm, variance="small"),
    "ddpm_large": partial(ddpm, variance="large"),
}
