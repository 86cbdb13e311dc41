"""The end of a job: every loss is counted, --strict refuses it, the next command is named."""

import shlex

import pytest

from lungseg.config.recipes import RECIPES, Job
from lungseg.errors import LungsegError
from lungseg.ingest.lost_inputs import lost_inputs
from lungseg.job_end import command, describe_losses, end_job


def test_losses_are_listed_with_their_numbers() -> None:
    losses = lost_inputs(
        {"ok": 7, "repaired": 1, "rejected": 7, "failed": 1},
        [
            ("ok", "mask_area", 2),
            ("repaired", "inverted", 1),
            ("rejected", "unmatched_mask", 3),
            ("rejected", "other_mask", 2),
            ("rejected", "blank", 2),
            ("failed", "unreadable", 1),
        ],
    )
    text = "2 rejected images, 1 failed image, 3 masks without an image, 2 ignored masks, 2 refused reference masks"
    assert describe_losses(losses) == text
    others = {"skipped_datasets": 1, "refused_exports": 2, "missing_overlays": 1, "failed_runs": 4}
    text = "1 dataset left out, 2 refused exports, 1 missing overlay, 4 runs not finished"
    assert describe_losses(others) == text  # type: ignore[arg-type]


def test_job_without_loss_names_the_next_command_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    end_job({"rejected": 0}, True, command("train", "small", "--data", "my data"), "lungseg report")
    assert caplog.messages == ["next: lungseg train small --data 'my data', or lungseg report"]
    assert shlex.split(caplog.messages[0].removesuffix(", or lungseg report"))[-1] == "my data"


def test_only_a_strict_job_fails_for_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    end_job({"rejected": 1, "refused_exports": 2}, False)
    assert caplog.messages == ["lost: 1 rejected image, 2 refused exports"]
    with pytest.raises(LungsegError, match="lost: 1 failed image: --strict allows no loss") as refused:
        end_job({"failed": 1}, True)
    assert refused.value.exit_status == 1


@pytest.mark.parametrize("job", list(RECIPES))
def test_every_job_can_be_strict(job: Job) -> None:
    assert all(not settings.strict for _, settings in RECIPES[job].values())
