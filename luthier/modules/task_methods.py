"""Task methods that a module inherits, made known to caikit.

caikit files a decorated method under the class in whose body it stands, and looks for a module's
own ones under the module's name; what is inherited would not be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any


def declare_task_methods(module: type, methods: Mapping[str, Callable[[Any], Any]]) -> None:
    """File methods of a class under its name, as if they stood in its body.

    Args:
        module: Has the methods; not yet given to caikit's ``@module``.
        methods: Name to what a task's ``taskmethod()`` gave.
    """
    for name, taskmethod in methods.items():
        # NOTE: of a method, caikit 0.29's ``taskmethod`` looks at these three names alone.
        taskmethod(
            SimpleNamespace(
                __module__=module.__module__,
                __qualname__=f"{module.__qualname__}.{name}",
                __name__=name,
            )
        )


def arguments_of(names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class method, so that each is spelled once: in its signature.

    Args:
        names: ``locals()``, in the method's first statement.

    Returns:
        Name to value, those of ``**kwargs`` among them, without ``cls``.
    """
    named = {name: value for name, value in names.items() if name not in ("cls", "kwargs")}
    return {**named, **names.get("kwargs", {})}
