"""The mathematics a diffusion prior is trained with: its parameterisation, its table, its density of noise levels."""

from moyai.diffusion import noise
from moyai.diffusion.config import (
    CosineTable,
    DensityConfig,
    EDMConfig,
    EpsConfig,
    FlowConfig,
    LinearTable,
    LogitNormalDensity,
    LogNormalDensity,
    ParameterizationConfig,
    ScaledLinearTable,
    TableConfig,
    TableDensity,
    UniformTDensity,
    VConfig,
    X0Config,
)
from moyai.diffusion.parameterization import EDM, X0, Eps, Flow, Parameterization, Tabled, V
from moyai.errors import ConfigError
from moyai.priors.diffusion import Density


def parameterization(config: ParameterizationConfig) -> Parameterization:
    """What the network predicts, as four numbers of sigma."""
    match config:
        case EpsConfig():
            return Eps(table(config.table))
        case X0Config():
            made = table(config.table)
            return X0(made.zero_terminal() if config.zero_terminal else made)
        case VConfig():
            made = table(config.table)
            return V(made.zero_terminal() if config.zero_terminal else made)
        case EDMConfig():
            return EDM(config.sigma_data)
        case FlowConfig():
            return Flow()


def table(config: TableConfig) -> noise.Table:
    """The noise levels of a discrete process."""
    match config:
        case LinearTable():
            return noise.Table.linear(config.start, config.end, config.steps)
        case ScaledLinearTable():
            return noise.Table.scaled_linear(config.start, config.end, config.steps)
        case CosineTable():
            return noise.Table.cosine(config.offset, config.steps)


def density(config: DensityConfig | None, made: Parameterization) -> Density:
    """The noise levels trained on; made: the parameterisation, whose table one of them needs."""
    match config:
        case TableDensity():
            if not isinstance(made, Tabled):
                raise ConfigError(
                    f"prior.density.kind is 'table', but {type(made).__name__} has no table; possible: log-normal, "
                    "logit-normal, uniform-t"
                )
            return noise.TableDensity(made.table)
        case LogNormalDensity():
            return noise.LogNormal(config.mean, config.std, config.shift)
        case UniformTDensity():
            return noise.UniformT(config.shift)
        case LogitNormalDensity():
            return noise.LogitNormal(config.mean, config.std, config.shift)
        case None:
            raise ConfigError("prior.density is not resolved")
