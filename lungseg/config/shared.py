"""What settings have in common, and how pictures are prepared, by prepare and infer alike."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Count = Literal["auto"] | Positive
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Settings(BaseModel):
    """What all settings share: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JobSettings(Settings):
    """What every job takes."""

    dry_run: Annotated[bool, Field(exclude=True)] = False
    """print the resolved settings as JSON and end"""


class PreprocessSettings(Settings):
    """How a picture of any size becomes a square of grey values; the same object serves prepare and infer."""

    size: Annotated[int, Field(ge=64, le=4096, multiple_of=16)] = 512
    """side of the square, px"""
    geometry: Literal["pad", "crop"] = "pad"
    """pad: the whole picture, black bars; crop: the short side fills the square, the rest is cut (the reference's)"""
    histogram: Literal["equalize", "clahe", "percentile", "match", "none"] = "none"
    """grey-level normalisation, computed at full depth before 8 bits (clahe: at 8 bits)"""
    landmarks: tuple[Annotated[float, Field(ge=0.0, le=255.0)], ...] = ()
    """of match: grey levels that the percentiles of a picture are brought to; learnt by prepare --match-to"""
    classes: tuple[Name, ...] = ("lung",)
    """classes of the masks, background 0 and then 1, 2 ... in this order; where two overlap the later one shows"""

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"preprocess.classes {' '.join(self.classes)}: name one or more, each once")
        return self

    @model_validator(mode="after")
    def _landmarks_are_for_match(self) -> Self:
        if self.landmarks and self.histogram != "match":
            raise ValueError(
                f"--preprocess.landmarks with --preprocess.histogram {self.histogram}, expected match, which alone has "
                "landmarks: pass it, or leave them out"
            )
        return self

    def differences(self, expected: Self) -> str:
        """Name the options in which these settings differ from others, with both values; "" where they do not."""
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
