"""Where the data come from, and how a picture becomes an array."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from moyai.schema import Config


class _Source(Config):
    """What every data source has in common."""

    name: str | None = Field(None, description="folder under $MOYAI_DATA or the cache where the data are looked for")
    root: Path | None = Field(None, description="where the data lie; goes before $MOYAI_DATA/<name>")
    resolution: int | tuple[int, int] | None = Field(
        None, description="side, or (height, width), in pixels; follows from the data when not given"
    )
    channels: Literal[1, 3, 4] | None = Field(None, description="1 grey, 3 RGB, 4 RGBA; follows from the data")
    resize: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="how a picture of another shape is brought to the resolution: crop the middle after scaling the "
        "shorter side, pad with black after scaling the longer side, or stretch",
    )
    flip: bool = Field(False, description="train on mirror images too; wrong for digits and text")
    validation: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.1, description="the share of the training data that no training sample enters"
    )
    limit: Annotated[int, Field(ge=2)] | None = Field(
        None, description="use only so many samples, evenly over the classes"
    )
    bad_files: Literal["skip", "stop"] = Field(
        "skip", description="skip unreadable files (named in the data report), or stop at the first"
    )
    max_bad: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="the share of unreadable files above which training does not start"
    )


class DigitsConfig(_Source):
    """scikit-learn's 1,797 handwritten digits (8x8, 10 classes), brought to 32x32. Needs nothing but scikit-learn."""

    kind: Literal["digits"] = "digits"
    resolution: int | tuple[int, int] | None = Field(32, description="side, or (height, width), in pixels")


class IdxConfig(_Source):
    """MNIST and its kin: the official IDX files, gzipped or not, found in a folder or downloaded."""

    kind: Literal["idx"] = "idx"
    classes: tuple[str, ...] | None = Field(None, description="names of the labels in order; 0, 1, 2 ... otherwise")
    download: bool = Field(True, description="fetch the files where they are not found and their address is known")


class Cifar10Config(_Source):
    """CIFAR-10: the official binary archive (or its unpacked .bin files), or a folder or .zip of class folders."""

    kind: Literal["cifar10"] = "cifar10"
    name: str | None = Field(
        "cifar10", description="folder under $MOYAI_DATA or the cache where the data are looked for"
    )
    download: bool = Field(True, description="fetch the archive where it is not found")


class FolderConfig(_Source):
    """A folder of pictures, or a .zip of one read in place. Sub-folders are classes."""

    kind: Literal["folder"] = "folder"
    classes: Literal["folders", "none"] = Field("folders", description="sub-folders are classes, or there are none")


DataConfig = Annotated[DigitsConfig | IdxConfig | Cifar10Config | FolderConfig, Field(discriminator="kind")]
