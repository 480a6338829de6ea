"""How a video is edited, as one object: the method, how it is denoised, and the controls.

`OPTIONS` and `edit_options` are the options as data; command line and server make theirs from them,
and `EditConfig.from_options` makes the object from their values. Importing this file imports no
torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from stillframe.options import Option
from stillframe.registry import catalogue

if TYPE_CHECKING:
    import torch

    from stillframe.controls import Controls
    from stillframe.controls.given import ControlFiles
    from stillframe.methods import Method

__all__ = ["DENOISING", "METHOD", "OPTIONS", "EditConfig", "edit_options"]

_CHANGE = "What is recomputed"
_LOOK = "Denoising"
_SPEED = "Speed and memory"

#: Which patches are computed, and what stands in for the others.
METHOD = {
    "method": Option(
        "str",
        "Choose which patches to compute: a name of `stillframe methods`, with fields of it if "
        "need be, as in runlength:threshold=0.05.",
        default="prune",
        metavar="NAME[:KEY=VALUE,...]",
        live=True,
    ),
    "tolerance": Option(
        "float",
        "Recompute a patch when it differs from its source by more than so many grey levels of "
        "255: 3 by default, which nobody sees; more is faster.",
        metavar="LEVELS",
        least=0,
        most=255,
        live=True,
    ),
    "motion": Option(
        "str",
        "Reuse patches that moved: off, by one motion of the camera (global), or wherever they "
        "went (full).",
        choices=("off", "global", "full"),
        group=_CHANGE,
        live=True,
    ),
    "recovery": Option(
        "str",
        "Choose what stands in for the other patches in attention: a name that `stillframe "
        "methods` lists.",
        metavar="NAME",
        group=_CHANGE,
        live=True,
    ),
    "tau1": Option(
        "float",
        "Set the short-term threshold of the detector latent.",
        metavar="DISTANCE",
        least=0,
        most=10**6,
        group=_CHANGE,
    ),
    "tau2": Option(
        "float",
        "Set the long-term threshold of the detector latent.",
        metavar="DISTANCE",
        least=0,
        most=10**6,
        group=_CHANGE,
    ),
    "rate": Option(
        "float",
        "Leave out this share of the tokens whatever changes, with methods that have a rate.",
        metavar="SHARE",
        least=0,
        below=1,
        group=_CHANGE,
    ),
}

#: How a stream is denoised.
DENOISING = {
    "strength": Option(
        "float",
        "Replace this share of the source by noise before the first pass.",
        metavar="SHARE",
        above=0,
        most=1,
        live=True,
    ),
    "seed": Option(
        "int",
        "Draw the noise from this seed.",
        default=0,
        metavar="N",
        least=0,
        most=2**63 - 1,
        group=_LOOK,
    ),
    "steps": Option(
        "int",
        "Denoise each block in so many passes.",
        metavar="N",
        least=1,
        most=1000,
        group=_LOOK,
    ),
    "sigmas": Option(
        "floats",
        "Denoise at these noise levels, falling, instead of by strength and steps: 1.0,0.6.",
        metavar="LEVELS",
        least=0,
        most=1,
        group=_LOOK,
    ),
    "conditioning": Option(
        "str",
        "Show the model its source, or only start from it as SDEdit does.",
        choices=("source", "sdedit"),
        group=_LOOK,
    ),
    "execution": Option(
        "str",
        "Run passes as CUDA graphs, in fewer kernels, or through diffusers' modules.",
        default="auto",
        choices=("auto", "graphs", "fused", "reference"),
        group=_SPEED,
    ),
    "products": Option(
        "str",
        "Multiply matrices in the weights' format, or in FP8 (Hopper and later); auto: in FP8 "
        "where --fit has stored weights so.",
        default="auto",
        choices=("auto", "exact", "fp8"),
        group=_SPEED,
    ),
    "store": Option(
        "str",
        "Store what recovery needs in the weights' format, in FP8, or in FP8 for weights of 16 "
        "bits (auto).",
        default="auto",
        choices=("auto", "exact", "fp8"),
        group=_SPEED,
    ),
    "cache": Option(
        "str",
        "Keep keys and values of earlier frames in the weights' format, in FP8, or as --fit has "
        "chosen (auto).",
        default="auto",
        choices=("auto", "exact", "fp8"),
        group=_SPEED,
    ),
}

#: Options of an edit beside those of its controls.
OPTIONS: dict[str, Option] = {**METHOD, **DENOISING}

# what pipelines call an option, where that is something else
_ARGUMENTS = {"steps": "num_inference_steps"}
# what matters where there is no source
_GENERATION = ("num_inference_steps", "sigmas", "execution", "products", "cache")
# what the detector of a method may be; the others are a control's
_OWN_DETECTORS = ("pixels", "latent")


@cache
def _bundled_control_options() -> dict[str, Option]:
    found: dict[str, Option] = {}
    for declared in catalogue("stillframe.controls").values():
        found.update(declared.options)
    return found


def edit_options() -> dict[str, Option]:
    """All options of an edit by name: `OPTIONS`, and those of every control that is registered."""
    found = {**OPTIONS, **_bundled_control_options()}
    # controls of users are there once they have been imported, and with them this module
    controls = sys.modules.get("stillframe.controls.base")
    if controls is not None:
        for kind in controls.control_kinds().values():
            found.update(kind.options)
    return found


def _as_it_is(name: str) -> str:
    return name


@dataclass(frozen=True)
class EditConfig:
    """How a video is edited. None leaves a value to the model.

    Functions that take a configuration take its fields as keyword arguments, too.

    Attributes:
        method: which tokens to compute: a name, a name with fields (``runlength:threshold=0.05``),
            or a `Method`.
        control: what else decides about a mask.
        strength: share of the source replaced by noise at the first pass, above 0 up to 1.
        num_inference_steps: denoising passes a block.
        sigmas: noise level of each pass, falling, instead of the two above.
        conditioning: "source" or "sdedit".
        store, cache, execution, products: see `StreamSettings`.
        seed: of the noise; None is 0 for files and sessions, and torch's own generator elsewhere.
    """

    method: Method | str = METHOD["method"].default
    control: Controls | None = None
    strength: float | None = None
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | None = None
    conditioning: str | None = None
    store: str = DENOISING["store"].default
    cache: str = DENOISING["cache"].default
    execution: str = DENOISING["execution"].default
    products: str = DENOISING["products"].default
    seed: int | None = None

    @classmethod
    def of(cls, config: EditConfig | None, values: Mapping[str, Any]) -> EditConfig:
        """A configuration with some of its fields set, the usual one if it is None.

        Raises:
            TypeError: there is no such field.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise TypeError(f"there is no argument {name!r}; known are {', '.join(known)}")
        return replace(config or cls(), **values)

    @classmethod
    def from_options(
        cls,
        values: Mapping[str, Any],
        *,
        named: Callable[[str], str] = _as_it_is,
        files: ControlFiles | None = None,
    ) -> EditConfig:
        """The configuration that plain values ask for.

        Args:
            values: of `edit_options`, by name; None and a missing one are not given.
            named: how the caller knows an option, for messages: ``--gop`` for "gop".
            files: reads what options of controls name; None where no files may be read.

        Raises:
            ValueError: there is no such option, one is out of range or lacks another, or the method
                cannot have it.
            InputError: a file cannot be read.
        """
        from stillframe.controls import build

        known, given = edit_options(), {}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"there is no option {named(name)}; known are {', '.join(known)}")
            if value is not None:
                given[name] = known[name].checked(named(name), value)
        method = _method(given, named)
        settings = {_ARGUMENTS.get(name, name): given[name] for name in DENOISING if name in given}
        return cls(method, build(given, method, named=named, files=files), **settings)

    @classmethod
    def of_generation(cls, config: EditConfig | None, values: Mapping[str, Any]) -> EditConfig:
        """`of` for text-to-video, which has no source: other fields of ``config`` do not matter.

        Raises:
            TypeError: a value is none of steps, sigmas, execution, products, cache and seed.
        """
        for name in values:
            if name not in (*_GENERATION, "seed"):
                raise TypeError(
                    f"there is no argument {name!r}; known are {', '.join(_GENERATION)}, seed"
                )
        return cls.of(config, values)

    @property
    def settings(self) -> dict[str, Any]:
        """How to denoise, as ``CausalWanPipeline.settings`` takes it."""
        names = (_ARGUMENTS.get(name, name) for name in DENOISING if name != "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def generation_settings(self) -> dict[str, Any]:
        """How to denoise from nothing, as ``CausalWanPipeline.generation_settings`` takes it."""
        return {name: getattr(self, name) for name in _GENERATION}

    @property
    def seeded(self) -> EditConfig:
        """The same with a seed, for what must come out the same whenever it is made."""
        return replace(self, seed=OPTIONS["seed"].default) if self.seed is None else self

    @property
    def generator(self) -> torch.Generator | None:
        """A fresh source of noise, None without a seed. Of the CPU: the same on every device."""
        import torch

        return None if self.seed is None else torch.Generator().manual_seed(self.seed)

    def changed(self, passes: int, **changes: Any) -> EditConfig:
        """The same with some of it changed; None changes nothing, but for ``control``.

        Sigmas replace strength and steps and are replaced by them; a strength alone keeps the
        number of passes.

        Args:
            passes: that there are now.
            changes: fields of this class, or of the method.

        Raises:
            ValueError: for a field of neither, or out of range.
        """
        own = {field.name for field in fields(self)}
        given = {k: v for k, v in changes.items() if v is not None or k == "control"}
        of_method = {name: given.pop(name) for name in sorted(set(given) - own)}
        if "strength" in given:
            given.setdefault("num_inference_steps", passes)
        if "sigmas" in given:
            given = {"strength": None, "num_inference_steps": None, **given}
        elif {"strength", "num_inference_steps"} & set(given):
            given["sigmas"] = None
        if of_method or "method" in given:
            from stillframe.methods import as_method

            given["method"] = as_method(given.get("method", self.method), **of_method)
        return replace(self, **given)


def _method(given: Mapping[str, Any], named: Callable[[str], str]) -> Method:
    """The method that options ask for.

    Raises:
        ValueError: there is none of that name, it lacks an option, or a value is out of range.
    """
    from stillframe.methods import as_method

    detector = given.get("detector")
    other = detector not in (None, "latent")
    if other and ("tau1" in given or "tau2" in given):
        raise ValueError(
            f"{named('tau1')} and {named('tau2')} are thresholds of {named('detector')} latent, "
            f"not {detector}"
        )
    names = ("recovery", "tolerance", "motion", "tau1", "tau2", "rate")
    wanted = {name: given.get(name) for name in names}
    wanted["detector"] = detector if detector in _OWN_DETECTORS else None
    return as_method(given.get("method", EditConfig.method), **wanted)
