"""Import timm and segmentation-models-pytorch without torch._dynamo and W&B, in half of the time.

Every inference actor starts with these imports, 2.7 s in all. torch._dynamo takes 1.3 s of them: torchvision and timm
import it only to query or annotate compiled models. W&B takes 0.3 s: timm imports it for its own logger. Placeholders
replace both during the import. A placeholder loads the real torch._dynamo when any other attribute of it is read.
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


class _PlaceholderModule(ModuleType):
    """Placeholder for a module; loads the real one when an unknown attribute is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python itself reads these of every module
            raise AttributeError(name)
        return getattr(_import_real(self.__name__), name)


@contextmanager
def without_slow_imports() -> Iterator[None]:
    """Replace torch._dynamo and W&B, where not imported yet, by placeholders inside the block."""
    modules: dict[str, ModuleType | None] = {}
    if _DYNAMO not in sys.modules:
        modules |= {_DYNAMO: _PlaceholderModule(_DYNAMO), _UTILS: _PlaceholderModule(_UTILS)}
        setattr(modules[_DYNAMO], "disable", _disable)  # noqa: B010  # ModuleType declares no such attribute
        setattr(modules[_UTILS], "is_compile_supported", _is_compile_supported)  # noqa: B010
    if "wandb" not in sys.modules:
        modules["wandb"] = None  # an import of it raises ImportError
    sys.modules.update(modules)  # type: ignore[arg-type]
    try:
        yield
    finally:
        _remove_placeholders()
        if "wandb" in modules:
            del sys.modules["wandb"]


def _remove_placeholders() -> None:
    for name in (_DYNAMO, _UTILS):
        if isinstance(sys.modules.get(name), _PlaceholderModule):
            del sys.modules[name]


def _import_real(name: str) -> ModuleType:
    _remove_placeholders()
    return importlib.import_module(name)


def _is_compile_supported(device_type: str) -> bool:
    """Call the function of torch._dynamo.utils. torchvision calls it in each RoI align."""
    return bool(_import_real(_UTILS).is_compile_supported(device_type))


def _disable(function: Any = None, *args: Any, **options: Any) -> Any:
    """Exclude a function from compilation at its first call; anything but a plain function at once."""
    if not inspect.isfunction(function):
        return _import_real(_DYNAMO).disable(function, *args, **options)

    @functools.cache
    def disabled() -> Callable[..., Any]:
        wrapped: Callable[..., Any] = _import_real(_DYNAMO).disable(function, *args, **options)
        return wrapped

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return disabled()(*args, **kwargs)

    return call


with without_slow_imports():
    import segmentation_models_pytorch as smp
    import timm
    from timm.layers import norm_act

__all__ = ["norm_act", "smp", "timm"]
