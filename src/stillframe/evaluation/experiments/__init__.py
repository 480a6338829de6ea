"""Experiments, one file each; every module of this package registers itself."""

import importlib
import pkgutil

from stillframe.evaluation.experiments.base import (
    Bench,
    Experiment,
    Scale,
    experiments,
    find_experiment,
    register,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Bench", "Experiment", "Scale", "experiments", "find_experiment", "register"]
