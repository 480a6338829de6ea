"""Metrics, one file each; every module of this package registers itself."""

import importlib
import pkgutil

from stillframe.metrics.base import Metric, Score, find_metric, metrics, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Metric", "Score", "find_metric", "metrics", "register"]
