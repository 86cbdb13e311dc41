"""Report the finished runs that earlier commands left in a study, and how their settings or code differ."""

import logging
from collections.abc import Sequence

from lungseg import provenance, storage
from lungseg.config import TrainSettings
from lungseg.plurals import counted
from lungseg.study.study_differences import RunSettings, describe_changes

logger = logging.getLogger(__name__)

_MAX_NAMED = 3


def other_code(study: str, names: Sequence[str]) -> list[str]:
    """Return the runs whose last start was with other code than that of this process."""
    return [name for name in names if _last_code(study, name) not in ("", provenance.code_digest())]


def log_finished(study: str, names: Sequence[str]) -> None:
    """Log when and with which code the finished runs that are not trained again were trained."""
    if not names:
        return
    ended = max(str(provenance.read(storage.join(study, name)).get("finished") or "") for name in names)
    codes = ", ".join(sorted({_last_code(study, name) or "unknown" for name in names}))
    logger.info("%s finished earlier, last on %s UTC with code %s", counted(len(names), "run"), ended, codes)
    changed = other_code(study, names)
    if changed:
        logger.warning(
            "%s of them with other code than today's (%s): %s; --rerun trains them again",
            len(changed),
            provenance.code_digest(),
            _listed(changed),
        )


def log_kept_aside(study: str, names: Sequence[str], settings: TrainSettings) -> None:
    """Log the finished runs that are not in the results, and how their settings differ."""
    if not names:
        return
    summary = storage.read_json(storage.join(study, names[-1], "run.json"), fields=RunSettings)
    differences = describe_changes(summary.get("settings", {}), settings.model_dump())
    logger.warning(
        "%s with other settings, data or code kept aside, not in the results: %s (%s); repeat the command that trained "
        "them to see them again, or pass another --study to keep both",
        counted(len(names), "finished run"),
        _listed(names),
        differences or "same settings, other data or code",
    )


def _last_code(study: str, name: str) -> str:
    starts = provenance.read(storage.join(study, name)).get("starts", [])
    return str(starts[-1]["code"]) if starts else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
