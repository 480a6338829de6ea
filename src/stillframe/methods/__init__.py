"""Methods, one file each; a module of this package registers the method it holds."""

import importlib
import pkgutil

from stillframe.methods.base import (
    Method,
    Score,
    Selector,
    as_method,
    find_method,
    methods,
    parse_method,
    register,
    split_methods,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Method",
    "Score",
    "Selector",
    "as_method",
    "find_method",
    "methods",
    "parse_method",
    "register",
    "split_methods",
]
