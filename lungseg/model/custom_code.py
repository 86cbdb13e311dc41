"""Objects of the user's own code, named on the command line as `package.module:Name`. Does not import torch.

Only what the user types is imported. A checkpoint names its network too, but that name is never imported by itself.
"""

import difflib
import functools
import hashlib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lungseg.errors import LungsegError, SettingsError, first_line
from lungseg.model.source_code import statements

if TYPE_CHECKING:
    from lungseg.config import TrainSettings

_PATH = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")

_LIBRARIES = ("site-packages", "importlib", str(Path(__file__).resolve().parents[1]))  # their lines are not the user's


@dataclass(frozen=True)
class ExtensionPoint:
    """An option that names a custom object.

    arguments: those that the object is called with. signature: what it takes and returns, for errors.

    is_factory: the named object builds the custom object when it is called with the arguments; otherwise a named class
    is first instantiated without arguments.
    """

    option: str
    arguments: tuple[str, ...]
    signature: str
    is_factory: bool = False


LOSS = ExtensionPoint(
    "--loss.custom",
    ("logits", "masks"),
    "logits f32[B,1,H,W] and masks f32[B,1,H,W] in {0,1} to one loss for each image, f32[B]",
)
NETWORK = ExtensionPoint(
    "--model.custom",
    (),
    "no arguments; it returns a torch.nn.Module from images f32[B,1,H,W] in [0,1] to logits f32[B,K,H,W], K classes",
    is_factory=True,
)
AUGMENTATION = ExtensionPoint(
    "--augment.custom",
    ("image", "mask", "random"),
    "an image u8[S,S], a mask u8[S,S] in {0,1} (of several classes u8[K,S,S]) and a numpy Generator to another such "
    "image and mask",
)
STEP = ExtensionPoint(
    "--optim.custom-step",
    ("model", "images", "masks", "loss"),
    "a network, images f32[B,1,H,W], masks f32[B,K,H,W] and a loss(logits, masks) to one loss for each image, f32[B]",
)


def named_objects(settings: "TrainSettings") -> list[tuple[ExtensionPoint, str]]:
    """Return the extension points that the settings use, with the import path of each."""
    paths = (
        (LOSS, settings.loss.custom),
        (NETWORK, settings.model.custom),
        (AUGMENTATION, settings.augment.custom),
        (STEP, settings.optim.custom_step),
    )
    return [(point, path) for point, path in paths if path]


def source_digests(settings: "TrainSettings") -> dict[str, str]:
    """Return the digest of the source of each custom object by its import path; {} without custom code.

    Raises:
        SettingsError: an object cannot be imported.

    """
    return {path: source_digest(point, path) for point, path in named_objects(settings)}


@functools.cache
def source_digest(point: ExtensionPoint, path: str) -> str:
    """Return a digest of the source files of the named module and of the module that defines the object.

    Read once per process, so that it is the digest of the code that runs. Other modules that these import do not
    count, nor do comments and docstrings. The decoder that lungseg offers to own encoders counts for every network.

    Raises:
        SettingsError: the object cannot be imported, or has no source file.

    """
    module, named = _import(point, path)
    defining = inspect.getmodule(named)
    files = {file for owner in (module, defining) if (file := getattr(owner, "__file__", None))}
    sources = sorted(file for file in files if file.endswith(".py"))
    if not sources:
        raise SettingsError(f"{point.option} {path}: no Python source file, whose digest is part of a run's name")
    if point == NETWORK:
        sources.append(str(Path(__file__).with_name("custom_encoder.py")))
    lines = [line for file in sources for line in statements(Path(file).read_text(encoding="utf-8"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def load_object(point: ExtensionPoint, path: str) -> Any:
    """Import an object and check that it can be called; a class is called without arguments first.

    Raises:
        SettingsError: there is no such module or attribute, it cannot be created, or it takes other arguments.

    """
    _, named = _import(point, path)
    if isinstance(named, type) and not point.is_factory:
        with errors_of(point, path):
            named = named()
    if not callable(named):
        raise SettingsError(f"{point.option} {path} cannot be called, expected: {point.signature}")
    if not _accepts(named if point.is_factory else getattr(named, "forward", named), point.arguments):
        arguments = ", ".join(point.arguments)
        raise SettingsError(f"{point.option} {path} cannot be called with ({arguments}), expected: {point.signature}")
    return named


def require_allowed(folder: str, named: str, allowed: str) -> None:
    """Check that the user named the custom network of a checkpoint, before it is imported.

    named: what the checkpoint names, "" for the built-in network. allowed: what the user named.

    Raises:
        SettingsError: the checkpoint names code that the user did not.

    """
    if named and named != allowed:
        given = f", not {allowed}" if allowed else ""
        raise SettingsError(
            f"{folder}: its network is {named}{given}, code that lungseg imports only if you name it: pass "
            f"{NETWORK.option} {named} to lungseg infer, adapt or export-model if you trust it"
        )


@contextmanager
def errors_of(point: ExtensionPoint, path: str) -> Iterator[None]:
    """Turn any exception of custom code into one line that names the file and the line.

    Raises:
        SettingsError: the block raised an exception.

    """
    try:
        yield
    except LungsegError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # of a GPU; the run says which setting to lower
            raise
        raise SettingsError(f"{point.option} {path} failed{_place(error)}: {first_line(error)}") from error


def guarded(point: ExtensionPoint, path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a custom function in `errors_of`."""

    def call(*args: Any) -> Any:
        with errors_of(point, path):
            return function(*args)

    return call


def _import(point: ExtensionPoint, path: str) -> tuple[ModuleType, Any]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise SettingsError(f"{point.option} {path}: expected package.module:Name, such as mypackage.focal:Focal")
    name = match["module"]
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise SettingsError(
                f"{point.option} {path}: no module {error.name} here: set PYTHONPATH to the folder that holds it, or "
                "on a cluster put it into the --working-dir of ray job submit"
            ) from None
        raise SettingsError(
            f"{point.option} {path}: importing it failed{_place(error)}: {first_line(error)}"
        ) from error
    if not hasattr(module, match["name"]):
        near = difflib.get_close_matches(match["name"], [other for other in vars(module) if other[0] != "_"], n=1)
        hint = f": did you mean {near[0]}?" if near else ": name a function or class of that module"
        raise SettingsError(f"{point.option} {path}: {name} has no {match['name']}{hint}")
    return module, getattr(module, match["name"])


def _accepts(named: Any, arguments: tuple[str, ...]) -> bool:
    """Return whether an object can be called with this many arguments."""
    try:
        inspect.signature(named).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # compiled functions have no signature; the trial call shows whether they fit
        return True
    return True


def _place(error: BaseException) -> str:
    """Return the file and line that raised an exception, such as ` in focal.py, line 12`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {Path(error.filename).name}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename for part in _LIBRARIES)]
    return f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
