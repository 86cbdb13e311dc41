"""Report the finished runs that earlier commands left in a study, and how their settings or code differ."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from lungseg import provenance, storage
from lungseg.config import TrainSettings
from lungseg.model.custom_code import source_digests
from lungseg.plurals import counted
from lungseg.study.study_differences import RunSettings, describe_changes
from lungseg.training.method_digest import method_digest

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
    logger.info("%s finished earlier, last on %s with code %s", counted(len(names), "run"), ended, codes)
    changed = other_code(study, names)
    if changed:
        logger.warning(
            "%s of them with other code than today's (%s): %s; --rerun trains them again",
            len(changed),
            provenance.code_digest(),
            _listed(changed),
        )


def log_kept_aside(study: str, names: Sequence[str], settings: TrainSettings, data: Mapping[str, str]) -> None:
    """Log the finished runs that are not in the results, and how their settings, data or code differ.

    settings: with ranks, device and threads. data: digest of each dataset by name.
    """
    if not names:
        return
    causes = Counter(" and ".join(_differences(storage.join(study, name), settings, data)) for name in names)
    logger.warning(
        "%s kept aside, not in the results: %s. To see them again, restore what has changed and repeat the command; to "
        "keep both, pass another --study",
        counted(len(names), "finished run"),
        "; ".join(f"{count} with {cause}" for cause, count in causes.most_common()),
    )


def _differences(run_folder: str, settings: TrainSettings, data: Mapping[str, str]) -> list[str]:
    """Describe why a finished run is not one of this command's: everything that is part of a run's name."""
    summary = storage.read_json(storage.join(run_folder, "run.json"), fields=RunSettings)
    found = []
    changes = describe_changes(summary.get("settings", {}), settings)
    if changes.startswith("--epochs ") and ";" not in changes:
        found.append(f"other {changes} (a finished run is not lengthened: the new one starts from the beginning)")
    elif changes:
        found.append(f"other settings ({changes})")
    sources = summary.get("custom_code", {})
    for path, now in source_digests(settings).items():
        if sources.get(path, now) != now:
            found.append(f"another source file of {path} ({sources[path]}, now {now})")
    method, current = summary.get("method", "unknown"), method_digest(settings)
    if method != current:
        found.append(f"another method (digest of network, loss, augmentation and steps {method}, now {current})")
    trained_on = summary.get("data", {})
    if trained_on != data:
        names = sorted(name for name in {*trained_on, *data} if trained_on.get(name) != data.get(name))
        found.append(f"other data ({', '.join(names)})")
    return found or ["other content of a file of weights or folds, or of prepared data of another version"]


def _last_code(study: str, name: str) -> str:
    starts = provenance.read(storage.join(study, name)).get("starts", [])
    return str(starts[-1]["code"]) if starts else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
