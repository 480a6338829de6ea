"""Workflows run headless by ComfyUI's own scheduler and caches, where a package has those.

``comfy_execution`` decides what runs, in which order, and what is kept between runs; it is the
real one. What moves values between nodes is in `Host` below, and so are the video nodes, which no
package has: their names and sockets are ComfyUI's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import torch
from tests import tiny
from tests.test_comfyui import NODES, PACK
from tests.video_samples import make_video

# ComfyUI's packages take the nodes that there are from a module of this name
_NODES = ModuleType("nodes")
_NODES.NODE_CLASS_MAPPINGS = {}  # type: ignore[attr-defined]
sys.modules.setdefault("nodes", _NODES)
graph: Any = pytest.importorskip("comfy_execution.graph", reason="ComfyUI's scheduler is not here")
caching: Any = pytest.importorskip("comfy_execution.caching")


class LoadVideo:
    FUNCTION, RETURN_TYPES = "load", ("VIDEO",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": ("STRING", {})}}

    def load(self, file: str) -> tuple[Any]:
        with av.open(file) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return (torch.from_numpy(np.stack(pictures)).float() / 255,)


class GetVideoComponents:
    FUNCTION, RETURN_TYPES = "split", ("IMAGE", "AUDIO", "FLOAT")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO",)}}

    def split(self, video: Any) -> tuple[Any, ...]:
        return video, None, 25.0


class CreateVideo:
    FUNCTION, RETURN_TYPES = "join", ("VIDEO",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        both: dict[str, Any] = {"images": ("IMAGE",), "fps": ("FLOAT", {})}
        return {"required": both, "optional": {"audio": ("AUDIO",)}}

    def join(self, images: Any, fps: float, audio: Any = None) -> tuple[Any]:
        return (images,)


class SaveVideo:
    FUNCTION, RETURN_TYPES, OUTPUT_NODE = "save", (), True
    saved: ClassVar[dict[str, Any]] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        texts: dict[str, Any] = {
            name: ("STRING", {}) for name in ("filename_prefix", "format", "codec")
        }
        return {"required": {"video": ("VIDEO",), **texts}}

    def save(self, video: Any, filename_prefix: str, format: str, codec: str) -> tuple[()]:
        SaveVideo.saved[filename_prefix] = video
        return ()


class LoadImage:
    """A camera: the next frame in every run."""

    FUNCTION, RETURN_TYPES = "load", ("IMAGE", "MASK")
    frames: ClassVar[Any] = iter(())

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> float:
        return float("nan")

    def load(self, image: str) -> tuple[Any, ...]:
        frame = next(LoadImage.frames)
        return frame[None], torch.zeros(1, *frame.shape[:2])


class PreviewImage:
    FUNCTION, RETURN_TYPES, OUTPUT_NODE = "show", (), True
    shown: ClassVar[list[Any]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}

    def show(self, images: Any) -> tuple[()]:
        PreviewImage.shown.extend(images)
        return ()


class Host:
    """Runs workflows: caches and order are ComfyUI's, the rest is what it documents."""

    def __init__(self) -> None:
        self.outputs = caching.HierarchicalCache(caching.CacheKeySetInputSignature)
        self.objects = caching.HierarchicalCache(caching.CacheKeySetID)

    def run(self, workflow: dict[str, Any]) -> Counter[str]:
        """Which nodes ran, and how often."""
        ran: Counter[str] = Counter()
        prompt = graph.DynamicPrompt(workflow)
        for cache in (self.outputs, self.objects):
            cache.set_prompt(prompt, workflow.keys(), _Changes(workflow))
            cache.clean_unused()
        todo = graph.ExecutionList(prompt, self.outputs)
        for number, node in workflow.items():
            if getattr(_kind(node), "OUTPUT_NODE", False) and self.outputs.get(number) is None:
                todo.add_node(number)
        while not todo.is_empty():
            number, error, _ = todo.stage_node_execution()
            assert error is None, error
            node = workflow[number]
            kind, values = _kind(node), {}
            for name, value in node["inputs"].items():
                linked = isinstance(value, list)
                values[name] = self.outputs.get(value[0])[value[1]] if linked else value
            blocked = any(isinstance(each, graph.ExecutionBlocker) for each in values.values())
            if blocked:
                result = tuple([graph.ExecutionBlocker(None)] * len(kind.RETURN_TYPES))
            else:
                if self.objects.get(number) is None:
                    self.objects.set(number, kind())
                result = getattr(self.objects.get(number), kind.FUNCTION)(**values)
                ran[node["class_type"]] += 1
            self.outputs.set(number, result)
            todo.complete_node_execution()
        return ran


class _Changes:
    """What nodes say of whether they must run again, asked with constant inputs alone."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self._workflow = workflow

    def get(self, number: str) -> Any:
        node = self._workflow[number]
        asked = getattr(_kind(node), "IS_CHANGED", None)
        fixed = {n: v for n, v in node["inputs"].items() if not isinstance(v, list)}
        return False if asked is None else [asked(**fixed)]


def _kind(node: dict[str, Any]) -> Any:
    return _NODES.NODE_CLASS_MAPPINGS[node["class_type"]]


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack's nodes beside the host's, with a small model of random weights."""
    own = (LoadVideo, GetVideoComponents, CreateVideo, SaveVideo, LoadImage, PreviewImage)
    mappings = {**NODES, **{kind.__name__: kind for kind in own}}
    monkeypatch.setattr(_NODES, "NODE_CLASS_MAPPINGS", mappings)
    caching.NODE_CLASS_CONTAINS_UNIQUE_ID.clear()
    SaveVideo.saved.clear()
    PreviewImage.shown.clear()
    loader = NODES["StillframeLoadModel"]
    monkeypatch.setattr(loader, "load", lambda self, **inputs: (tiny.pipeline(),))


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((PACK / "workflows" / name).read_text(encoding="utf-8"))
    return loaded


def test_a_clip_goes_through_and_what_did_not_change_runs_once(tmp_path: Path) -> None:
    clip = (tiny.clip(21)[0].permute(0, 2, 3, 1) * 255).byte().numpy()
    make_video(tmp_path / "in.mp4", list(clip))
    asked, host = workflow("edit_video_api.json"), Host()
    asked["1"]["inputs"]["file"] = str(tmp_path / "in.mp4")
    ran = host.run(asked)
    assert ran["StillframeEditVideo"] == ran["StillframeLoadModel"] == 1
    edited, drawn = (SaveVideo.saved[f"stillframe/{name}"] for name in ("edited", "map"))
    assert edited.shape == drawn.shape == clip.shape

    assert not host.run(json.loads(json.dumps(asked)))
    other = json.loads(json.dumps(asked))
    other["4"]["inputs"]["prompt"] = "night"
    ran = host.run(other)
    assert ran == {"StillframeEditVideo": 1, "CreateVideo": 2, "SaveVideo": 2}
    assert not torch.equal(SaveVideo.saved["stillframe/edited"], edited)


def test_a_stream_is_kept_between_runs() -> None:
    images = (tiny.clip(30)[0].permute(0, 2, 3, 1) * 255).round() / 255
    LoadImage.frames = iter(images)
    asked, host = workflow("edit_stream_api.json"), Host()
    late = tiny.pipeline().timeline.later_frames - 1
    for number in range(1, len(images) + 1):
        if number == len(images):
            asked["3"]["inputs"]["finish"] = True
        ran = host.run(json.loads(json.dumps(asked)))
        assert ran["StillframeStreamEdit"] == 1
        assert ran["StillframeLoadModel"] == (number == 1)
        due = len(images) if number == len(images) else max(number - late, 0)
        assert len(PreviewImage.shown) == due
    edit = NODES["StillframeEditVideo"]().edit
    wanted, *_ = edit(tiny.pipeline(), images, "oil painting", seed=0)
    assert torch.equal(torch.stack(PreviewImage.shown), wanted)
