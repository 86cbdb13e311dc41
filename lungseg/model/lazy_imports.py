"""timm and segmentation-models-pytorch, imported without what networks never ask of them: in half of the time.

An actor of an inference starts with these imports. Of 2.7 s for both, 1.3 are torch._dynamo, which torchvision and timm
import to ask and to mark what matters when a model is compiled; and 0.3 are W&B, which timm imports for a logger of its
own. Both can wait. Whatever else is asked of torch._dynamo meanwhile, the real one answers.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_DYNAMO, _UTILS = "torch._dynamo", "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands in for a module until something is asked of it that cannot wait."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own, who looks at every module that there is
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


@contextmanager
def _put_off() -> Iterator[None]:
    """Let the block import without the two, if they are not there already; then nothing stands in for them."""
    modules: dict[str, ModuleType | None] = {}
    if _DYNAMO not in sys.modules:
        modules |= {_DYNAMO: _Later(_DYNAMO), _UTILS: _Later(_UTILS)}
        setattr(modules[_DYNAMO], "disable", _disable)  # noqa: B010  # a module has no such attribute by its type
        setattr(modules[_UTILS], "is_compile_supported", _is_compile_supported)  # noqa: B010
    if "wandb" not in sys.modules:
        modules["wandb"] = None  # Python's own way to say that there is none
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        _take_away()
        if "wandb" in modules:
            del sys.modules["wandb"]


def _take_away() -> None:
    for name in (_DYNAMO, _UTILS):
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


def _real(name: str) -> ModuleType:
    _take_away()
    return importlib.import_module(name)


def _is_compile_supported(device_type: str) -> bool:
    """Ask torch._dynamo.utils; torchvision does so in each RoI align."""
    return bool(_real(_UTILS).is_compile_supported(device_type))


def _disable(function: Any = None, *settings: Any, **named: Any) -> Any:
    """Mark a function as not to be compiled, once it is called; a class, and settings for what follows, at once."""
    if not inspect.isfunction(function):
        return _real(_DYNAMO).disable(function, *settings, **named)

    @functools.cache
    def marked() -> Callable[..., Any]:
        found: Callable[..., Any] = _real(_DYNAMO).disable(function, *settings, **named)
        return found

    @functools.wraps(function)
    def first(*args: Any, **kwargs: Any) -> Any:
        return marked()(*args, **kwargs)

    return first


with _put_off():
    import segmentation_models_pytorch as smp
    import timm
    from timm.layers import norm_act

__all__ = ["norm_act", "smp", "timm"]
