"""The choices of the diffusion mathematics: parameterisation, table, training density, weighting, sampling grid."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from moyai.schema import Config

Count = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(gt=0, lt=1)]


class LinearTable(Config):
    """betas linear from start to end (Ho et al. 2020)."""

    kind: Literal["linear"] = "linear"
    start: Beta = Field(1e-4, description="the first beta")
    end: Beta = Field(0.02, description="the last beta")
    steps: Count = Field(1000, description="entries of the table")


class ScaledLinearTable(Config):
    """betas = linspace(sqrt(start), sqrt(end))^2 (Rombach et al. 2022; Stable Diffusion has these values)."""

    kind: Literal["scaled-linear"] = "scaled-linear"
    start: Beta = Field(0.00085, description="the first beta")
    end: Beta = Field(0.012, description="the last beta")
    steps: Count = Field(1000, description="entries of the table")


class CosineTable(Config):
    """abar(t) = cos^2((t/T + s)/(1 + s) pi/2), betas at most 0.999 (Nichol and Dhariwal 2021)."""

    kind: Literal["cosine"] = "cosine"
    offset: Annotated[float, Field(ge=0)] = Field(0.008, description="s, which keeps the first betas from vanishing")
    steps: Count = Field(1000, description="entries of the table")


TableConfig = Annotated[LinearTable | ScaledLinearTable | CosineTable, Field(discriminator="kind")]


class EpsConfig(Config):
    """The network predicts the noise."""

    kind: Literal["eps"] = "eps"
    table: TableConfig = ScaledLinearTable()


class X0Config(Config):
    """The network predicts the clean picture."""

    kind: Literal["x0"] = "x0"
    table: TableConfig = CosineTable()
    zero_terminal: bool = Field(False, description="rescale the table to abar_T = 2^-24 (Lin et al. 2024)")


class VConfig(Config):
    """The network predicts v = alpha noise - sigma x0 (Salimans and Ho 2022)."""

    kind: Literal["v"] = "v"
    table: TableConfig = CosineTable()
    zero_terminal: bool = Field(False, description="rescale the table to abar_T = 2^-24 (Lin et al. 2024)")


class EDMConfig(Config):
    """The network predicts a mixture of picture and noise that has variance one at every level (Karras et al. 2022)."""

    kind: Literal["edm"] = "edm"
    sigma_data: Annotated[float, Field(gt=0)] = Field(
        1.0, description="standard deviation of what is modelled: 1 for latents, which are normalised"
    )


class FlowConfig(Config):
    """The network predicts noise - x0 along a straight line (rectified flow)."""

    kind: Literal["flow"] = "flow"


ParameterizationConfig = Annotated[EpsConfig | X0Config | VConfig | EDMConfig | FlowConfig, Field(discriminator="kind")]


class FixedVariance(Config):
    """The network says where a step leads; how widely it scatters is the sampler's choice."""

    kind: Literal["fixed"] = "fixed"


class LearnedVariance(Config):
    """The network says how widely a step scatters too, in 2C outputs (Nichol and Dhariwal 2021); needs a table."""

    kind: Literal["learned"] = "learned"
    bound_weight: Annotated[float, Field(gt=0)] = Field(
        0.001, description="lambda, the weight of the variational bound in the loss"
    )


VarianceConfig = Annotated[FixedVariance | LearnedVariance, Field(discriminator="kind")]


class TableDensity(Config):
    """sigma is that of a uniform index into the table."""

    kind: Literal["table"] = "table"


class LogNormalDensity(Config):
    """ln sigma is normal (EDM)."""

    kind: Literal["log-normal"] = "log-normal"
    mean: float = Field(0.3, description="of ln sigma")
    std: Annotated[float, Field(gt=0)] = Field(1.0, description="of the same")
    shift: Annotated[float, Field(gt=0)] = Field(1.0, description="a factor on sigma; above 1 for large latents")


class UniformTDensity(Config):
    """t is uniform, sigma = t / (1 - t)."""

    kind: Literal["uniform-t"] = "uniform-t"
    shift: Annotated[float, Field(gt=0)] = Field(1.0, description="a factor on sigma; above 1 for large latents")


class LogitNormalDensity(Config):
    """logit t is normal, sigma = t / (1 - t) (Esser et al. 2024)."""

    kind: Literal["logit-normal"] = "logit-normal"
    mean: float = Field(0.0, description="of logit t")
    std: Annotated[float, Field(gt=0)] = Field(1.0, description="of the same")
    shift: Annotated[float, Field(gt=0)] = Field(1.0, description="a factor on sigma; above 1 for large latents")


DensityConfig = Annotated[
    TableDensity | LogNormalDensity | UniformTDensity | LogitNormalDensity, Field(discriminator="kind")
]


class WeightingConfig(Config):
    """w(sigma) on |D - x0|^2: plain 1/out^2, x0 1, snr 1/s^2, min-snr min(1/s^2, gamma), edm (s^2+d^2)/(s d)^2."""

    kind: Literal["plain", "x0", "snr", "min-snr", "edm"] = Field("plain", description="the formula of the weight")
    gamma: Annotated[float, Field(gt=0)] = Field(5.0, description="min-snr only: the largest weight")
    sigma_data: Annotated[float, Field(gt=0)] = Field(1.0, description="edm only: standard deviation of the latents")


class Method(NamedTuple):
    """Of a sampler: evaluations of the network a step, and whether it takes fresh noise (`eta`)."""

    evaluations: int = 1
    eta: bool = False


METHODS = {
    "euler": Method(eta=True),
    "heun": Method(2),
    "dpm2": Method(2),
    "dpmpp_2s": Method(2, eta=True),
    "dpmpp_2m": Method(eta=True),
    "dpmpp_3m": Method(eta=True),
    "dpmpp_3m_exact": Method(eta=True),
    "unipc": Method(),
    "unipc_3": Method(),
    "lms": Method(),
    "deis": Method(),
    "plms": Method(),
    "ipndm": Method(),
    "ddpm": Method(),
    "ddpm_small": Method(),
    "ddpm_large": Method(),
}
NOISY = tuple(name for name, method in METHODS.items() if method.eta)


class SamplingConfig(Config):
    """How samples are drawn unless a request says otherwise."""

    sampler: Literal[
        "euler", "heun", "dpm2", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "dpmpp_3m_exact", "unipc", "unipc_3", "lms",
        "deis", "plms", "ipndm", "ddpm", "ddpm_small", "ddpm_large",
    ] = Field(
        "dpmpp_2m",
        description="heun, dpm2 and dpmpp_2s evaluate the network twice a step, the others once; euler is DDIM; ddpm "
        "scatters as the prior learned to (ddpm_small where it did not)",
    )  # fmt: skip
    grid: Literal["karras", "uniform-log", "uniform-time", "table"] = Field(
        "karras", description="how the noise levels of the steps are spread; table needs eps, x0 or v"
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(20, description="steps from noise to picture")
    eta: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="fresh noise in each step: 0 none (DDIM), 1 as DDPM; with euler and the dpmpp ones only"
    )
    guidance: Annotated[float, Field(ge=0)] = Field(1.5, description="classifier-free guidance; 1 is none")
    batch: Count = Field(32, description="pictures a forward; part of a picture's recipe")
