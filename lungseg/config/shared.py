"""Base classes of all settings, and the preprocessing that prepare and infer share."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lungseg.config.class_names import ONE_CLASS, similar_names
from lungseg.errors import InputError

Positive = Annotated[int, Field(ge=1)]
Count = Literal["auto"] | Positive
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Settings(BaseModel):
    """Frozen settings that reject unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JobSettings(Settings):
    """Settings of every job."""

    dry_run: Annotated[bool, Field(exclude=True)] = False
    """print all resolved settings as YAML and exit"""
    strict: bool = False
    """end with exit status 1 if anything was lost, such as a rejected image or a refused export"""


class AllowedCode(Settings):
    """Code that checkpoints name; nothing is imported for a checkpoint unless you name it here."""

    custom: str = ""
    """network of the checkpoints that were trained with --model.custom, as package.module:Name"""


class PreprocessSettings(Settings):
    """Conversion of an image of any size to a square of 8-bit grey values."""

    size: Annotated[int, Field(ge=64, le=4096, multiple_of=16)] = 512
    """side of the square in pixels"""
    geometry: Literal["pad", "crop"] = "pad"
    """pad: the whole image with black bars; crop: the short side fills the square and the rest is cut off"""
    histogram: Literal["equalize", "clahe", "percentile", "match", "none"] = "none"
    """normalization of grey levels at full bit depth (clahe: at 8 bits)"""
    landmarks: tuple[Annotated[float, Field(ge=0.0, le=255.0)], ...] = ()
    """with histogram match: target grey levels of the percentiles; computed by lungseg prepare --match-to"""
    classes: tuple[Name, ...] = ONE_CLASS
    """classes of the masks, in this order, such as right_lung left_lung heart opacity; they may overlap"""

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"preprocess.classes {' '.join(self.classes)}: name one or more, each once")
        if similar := similar_names(self.classes):
            raise ValueError(f"preprocess.classes: {' and '.join(similar)} look like one class: name it once")
        return self

    @model_validator(mode="after")
    def _landmarks_are_for_match(self) -> Self:
        if self.landmarks and self.histogram != "match":
            raise ValueError(
                f"--preprocess.landmarks with --preprocess.histogram {self.histogram}, expected match: pass "
                "--preprocess.histogram match, or no landmarks"
            )
        return self

    @classmethod
    def stored(cls, values: object, path: str) -> Self:
        """Return the settings that a file of an earlier job contains.

        Raises:
            InputError: they are not valid.

        """
        try:
            return cls.model_validate(values)
        except ValidationError:
            raise InputError(f"{path}: its preprocessing settings are not valid: the file is damaged") from None

    def differences(self, expected: Self) -> str:
        """List the options that differ from the expected settings, with both values; "" if none differ."""
        mine, theirs = self.model_dump(), expected.model_dump()
        return "; ".join(
            f"found --preprocess.{name} {format_value(mine[name])}, expected {format_value(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        )


def format_value(value: object) -> str:
    """Write a value as on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(format_value, value)) or "(none)"
    return "(none)" if value is None or value == "" else str(value)
