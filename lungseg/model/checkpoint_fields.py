"""Fields of the JSON files of checkpoints, exported models and studies that a reader needs."""

from typing import Annotated, Any

from pydantic import Field

from lungseg.storage.json_files import JsonFields, Whole

_Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class RunState(JsonFields):
    """State of a run in study.json."""

    state: str | None = None
    reason: str | None = None
    in_results: bool = True
    seed: Whole = 0


class StudyRuns(JsonFields):
    """Runs of a study and their states in study.json."""

    runs: list[str]
    states: dict[str, RunState] = Field(default_factory=dict)


class Threshold(JsonFields):
    """A threshold for lung pixels, and those of each of several classes."""

    threshold: _Share = 0.5
    thresholds: dict[str, _Share] = Field(default_factory=dict)


class Adaptation(JsonFields):
    """The model that one was adapted from."""

    model: str


class ModelAndThreshold(Threshold):
    """Settings that a model was trained with."""

    model: dict[str, Any]


class ConfigFields(JsonFields):
    """config.json of a checkpoint."""

    run: str = ""
    epoch: Whole
    epochs: Whole = 0
    trained: bool = True
    adapted_to: Adaptation | None = None
    preprocess: dict[str, Any]
    settings: ModelAndThreshold
    digests: dict[str, str]
    custom_code: dict[str, str] = Field(default_factory=dict)


class WeightsDigest(JsonFields):
    """Digest of the weights of an exported model."""

    weights: Annotated[str, Field(alias="model.safetensors", pattern="^[0-9a-f]{64}$")]


class ExportedFields(ConfigFields):
    """config.json of an exported model."""

    trained_on_digests: list[str]
    digests: WeightsDigest  # type: ignore[assignment]
