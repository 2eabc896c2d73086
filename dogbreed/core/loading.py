"""Loading torch and Lightning in three quarters of the processor's time."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def loading() -> Iterator[None]:
    """Hold the heavy imports of a command.

    The garbage collector waits, which looks at a million new objects again and again and finds none to delete. And
    torchmetrics, which Lightning loads, gets `scipy.signal` only if it uses it: it loads all of it to add one name
    that nobody asks for.
    """
    collecting = gc.isenabled()
    gc.disable()
    postponed = _Postponed("scipy.signal")
    sys.modules.setdefault(postponed.__name__, postponed)
    try:
        yield
    finally:
        postponed.withdraw()
        if collecting:
            gc.enable()


class _Postponed(ModuleType):
    """A module that is loaded when something of it is used, but for the name that torchmetrics adds."""

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # nobody's use: `inspect` looks at every module for `__file__`
            raise AttributeError(name)
        self.withdraw()
        return getattr(importlib.import_module(self.__name__), name)

    def withdraw(self) -> None:
        """Leave the place to the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
