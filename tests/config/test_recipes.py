"""The named recipes of every job."""

from typing import get_args

import pytest

from lungseg.config import (
    AdaptSettings,
    BenchSettings,
    ExportSettings,
    InferSettings,
    JobSettings,
    PrepareSettings,
    ReportSettings,
    TrainSettings,
)
from lungseg.config.command_line import parse
from lungseg.config.recipes import DATA_OPTIONS, DATA_RECIPES, RECIPES, Job

EVERY = [(job, name) for job, recipes in RECIPES.items() for name in recipes]
KINDS: dict[str, type[JobSettings]] = {
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "adapt": AdaptSettings,
    "infer": InferSettings,
    "export": ExportSettings,
    "report": ReportSettings,
    "bench": BenchSettings,
}


def test_every_job_has_a_demo_and_an_own_data_recipe() -> None:
    assert set(RECIPES) == set(get_args(Job)) == set(KINDS) == set(DATA_RECIPES) == set(DATA_OPTIONS)
    for job, recipes in RECIPES.items():
        assert {"demo", DATA_RECIPES[job]} <= set(recipes)
        assert set(DATA_OPTIONS[job]) <= set(KINDS[job].model_fields)
        own = recipes[DATA_RECIPES[job]][1]
        assert not any(getattr(own, name) for name in DATA_OPTIONS[job])


@pytest.mark.parametrize(("job", "name"), EVERY)
def test_recipe_parses_to_its_settings(job: Job, name: str) -> None:
    promise, settings = RECIPES[job][name]
    assert parse(job, [name]) == settings
    assert type(settings) is KINDS[job]
    assert promise.endswith(".")
