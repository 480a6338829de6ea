"""The plugin for Daydream Scope, over a stand-in of the names that it takes from there.

Scope is on no package index. What is here of it is what its documentation says: a base class, a
model of settings, a number of frames; it does nothing.
"""

from __future__ import annotations

import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from tests import tiny

pydantic: Any = pytest.importorskip("pydantic")
PLUGIN = Path(__file__).parents[1] / "integrations" / "scope"


class Requirements(pydantic.BaseModel):
    input_size: int


class BasePipelineConfig(pydantic.BaseModel):
    pipeline_id: ClassVar[str]
    pipeline_name: ClassVar[str]
    pipeline_description: ClassVar[str]
    supports_prompts: ClassVar[bool]
    modes: ClassVar[dict[str, Any]]


class Pipeline(ABC):
    @abstractmethod
    def __call__(self, **inputs: Any) -> dict[str, Any]: ...


def hookimpl(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin's class as Scope gets it, with a small model of random weights."""
    names: dict[str, dict[str, Any]] = {
        "scope.core.plugins.hookspecs": {"hookimpl": hookimpl},
        "scope.core.pipelines.interface": {"Pipeline": Pipeline, "Requirements": Requirements},
        "scope.core.pipelines.base_schema": {
            "BasePipelineConfig": BasePipelineConfig,
            "ModeDefaults": dict,
            "ui_field_config": lambda **hints: {"ui": hints},
        },
    }
    for parent in ("scope", "scope.core", "scope.core.plugins", "scope.core.pipelines"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    for name, values in names.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(PLUGIN))
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))
    __import__(project["project"]["entry-points"]["scope"]["stillframe"])
    found: list[Any] = []
    sys.modules["stillframe_scope"].register_pipelines(found.append)
    module = sys.modules["stillframe_scope.pipeline"]
    monkeypatch.setattr(module, "load_pipeline", lambda name, device: tiny.pipeline())
    yield found[0]
    for name in ("stillframe_scope", "stillframe_scope.pipeline"):
        sys.modules.pop(name, None)


def test_it_gives_a_streams_frames(pipeline: Any) -> None:
    made, pipe = pipeline(seed=3), tiny.pipeline()
    size = made.prepare(video=True).input_size
    assert size == pipe.timeline.later_frames
    clip = (tiny.clip(2 * size)[0].permute(0, 2, 3, 1) * 255).round()
    prompts = [{"text": "night", "weight": 0.2}, {"text": "sepia", "weight": 0.9}]
    outs = [
        made(video=list(part.split(1)), prompts=prompts, tolerance=3.0)["video"]
        for part in clip.split(size)
    ]
    stream = pipe.stream("sepia", seed=3)
    pixels = (clip / 255).permute(0, 3, 1, 2)[None]
    parts = [part for each in pixels.split(size, 1) if (part := stream.push(each)) is not None]
    wanted = torch.cat(parts, 1)[0].permute(0, 2, 3, 1)
    assert torch.cat(outs).shape == wanted.shape
    assert (torch.cat(outs) - wanted).abs().max() <= 0.5 / 255 + 1e-6


def test_a_tolerance_and_a_prompt_count_from_the_next_block_on(pipeline: Any) -> None:
    made = pipeline()
    clip = (tiny.clip(24)[0].permute(0, 2, 3, 1) * 255).round()
    made(video=list(clip[:12]), prompts=["sepia"])
    stream = made._stream
    made(video=list(clip[12:]), prompts=["night"], tolerance=7.0)
    assert made._stream is stream
    assert stream.method.tolerance == 7
    with pytest.raises(ValueError, match="tolerance is a number from 0 to 255, got 300"):
        made(video=list(clip[:12]), tolerance=300)
    with pytest.raises(ValueError, match="got 0 frames"):
        made(prompts=["sepia"])


def test_its_settings_have_the_bounds_of_our_options(pipeline: Any) -> None:
    config = pipeline.get_config_class()
    assert config.pipeline_id == "stillframe"
    assert config().tolerance == 3
    with pytest.raises(pydantic.ValidationError):
        config(tolerance=256)
