"""Attention recoveries, one file each; every module of this package registers itself."""

import importlib
import pkgutil

from stillframe.recovery.base import (
    Recovery,
    RecoverySetup,
    find_recovery,
    recoveries,
    register,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Recovery", "RecoverySetup", "find_recovery", "recoveries", "register"]
