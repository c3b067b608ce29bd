"""Where the data come from, and how a picture becomes an array."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

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
    class_captions: tuple[str, ...] = Field(
        (), description='captions made from the classes, such as "a picture of a {class}"; several in turn'
    )

    @field_validator("class_captions")
    @classmethod
    def _with_a_class(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if "{class}" not in one]:
            raise ValueError(f'"{wrong[0]}" has no {{class}}, which stands for the name of the class')
        return value


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
    classes: Literal["folders", "none"] = Field(
        "folders", description="sub-folders are classes (or a column of the table, where it has one), or there are none"
    )
    table: str = Field(
        "found",
        description="a .csv, .tsv or .jsonl in the folder (or anywhere) that tells of each picture by a column "
        'file_name; metadata.csv or metadata.jsonl is found by itself, "none" leaves it alone',
    )
    columns: dict[str, str] | None = Field(
        None,
        description='which columns of the table are used, as which fields, such as {breed="class", title="caption", '
        'age="age"}; all that are captions, classes or numbers when not given',
    )
    captions: Literal["found", "files", "table", "none"] = Field(
        "found",
        description="captions are in .txt (or .caption) files beside the pictures, or in the table, or not used",
    )
    masks: str = Field(
        "found",
        description="a folder of masks with the pictures' names; those beside the pictures (cat_mask.png, "
        'cat.mask.png) or named in the column mask_file_name are found by themselves, "none" leaves them alone',
    )


class OasisConfig(_Source):
    """Brain slices in the OASIS PNG layout, or a .zip of it: the case and the position of each are in its name."""

    kind: Literal["oasis"] = "oasis"
    name: str | None = Field("brain", description="folder under $MOYAI_DATA or the cache where the data are looked for")
    resize: Literal["crop", "pad", "stretch"] = Field(
        "pad", description="how a slice of another shape is brought to the resolution; pad keeps the field of view"
    )
    held_out: Literal["validate", "test", "tuning"] = Field(
        "validate",
        description="the cases that no training sample enters: those of keras_png_slices_validate, those of "
        "keras_png_slices_test, or a third of keras_png_slices_train, the other folders left alone",
    )

    @model_validator(mode="after")
    def _whole_cases(self) -> "OasisConfig":
        if self.validation != type(self).model_fields["validation"].default:
            raise ValueError('validation does not act here: whole cases are held out; possible: held_out="tuning"')
        return self


class NiftiConfig(_Source):
    """A folder of NIfTI volumes (.nii, .nii.gz) cut into slices in RAS orientation. Needs nibabel (moyai[medical])."""

    kind: Literal["nifti"] = "nifti"
    resize: Literal["crop", "pad", "stretch"] = Field(
        "pad", description="how a slice of another shape is brought to the resolution; pad keeps the field of view"
    )
    files: str = Field("*", description='which volumes by name, such as "*_T1w.nii.gz"; * also stands for slashes')
    subject: str = Field(
        "[^_]*",
        description="regular expression for the person at the beginning of a file's name (without folders and .nii); "
        "all slices of a person are held out or none",
    )
    axis: Literal["axial", "coronal", "sagittal"] = Field("axial", description="what the slices are cut across")
    slices: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = Field(
        (0.2, 0.8), description="which slices, as fractions of the range from the first (0) to the last (1)"
    )
    window: tuple[float, float] | None = Field(
        None,
        description="the values that become black and white; follows from each volume's percentiles when not given",
    )
    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = Field(
        (0.5, 99.5), description="of a volume's positive values: what becomes black and white where no window is given"
    )
    bits: Literal[8, 16] = Field(8, description="of a stored value")

    @model_validator(mode="after")
    def _ascending(self) -> "NiftiConfig":
        for name, pair in (("slices", self.slices), ("window", self.window), ("percentiles", self.percentiles)):
            if pair is not None and not (pair[0] < pair[1] or (name == "slices" and pair[0] == pair[1])):
                raise ValueError(f"{name} is ({pair[0]:g}, {pair[1]:g}); the first must be below the second")
        return self


class ShapesConfig(_Source):
    """Scenes of one to three coloured shapes with captions and maps of regions, drawn by moyai itself."""

    kind: Literal["shapes"] = "shapes"
    count: Annotated[int, Field(ge=2, le=1_000_000)] = Field(20_000, description="pictures that are drawn")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="the pictures follow from it")
    resolution: int | tuple[int, int] | None = Field(64, description="side, or (height, width), in pixels")
    phrasing: Literal["varied", "plain"] = Field(
        "varied",
        description="captions in many forms; or each in its plainest, three of four pairs named in reading order (left "
        "of, above), which a small model learns sooner",
    )

    @model_validator(mode="after")
    def _as_told(self) -> "ShapesConfig":
        if self.channels not in (None, 3):
            raise ValueError(f"channels is {self.channels}, but captions tell of colours; possible: 3")
        if self.flip:
            raise ValueError("flip would make captions wrong, which tell left from right; possible: false")
        return self


DataConfig = Annotated[
    DigitsConfig | IdxConfig | Cifar10Config | FolderConfig | OasisConfig | NiftiConfig | ShapesConfig,
    Field(discriminator="kind"),
]
