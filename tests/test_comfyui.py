"""Nodes for ComfyUI: its first interface as documented, and what they do beside the pipeline.

`test_comfyui_graph.py` runs the workflows by ComfyUI's own scheduler and caches, where those are.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

PACK = Path(__file__).parents[1] / "integrations" / "comfyui"
WORKFLOWS = sorted(path for path in (PACK / "workflows").glob("*_api.json"))
WIDGETS: dict[str, Any] = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
#: Of the nodes that ComfyUI comes with, outputs that the workflows use.
HOST = {
    "LoadVideo": ["VIDEO"],
    "GetVideoComponents": ["IMAGE", "AUDIO", "FLOAT"],
    "CreateVideo": ["VIDEO"],
    "SaveVideo": [],
    "LoadImage": ["IMAGE", "MASK"],
    "PreviewImage": [],
}


def load_pack() -> Any:
    """The pack as ComfyUI loads it: a package by its file, under a name of the host's."""
    name = "custom_nodes_stillframe"
    if name not in sys.modules:
        places = [str(PACK)]
        file = PACK / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


NODES = load_pack().NODE_CLASS_MAPPINGS


def inputs(kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """All inputs of a node in order: type and hints."""
    declared = NODES[kind].INPUT_TYPES()
    both = {**declared.get("required", {}), **declared.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in both.items()}


@pytest.mark.parametrize("kind", NODES)
def test_nodes_keep_the_interface(kind: str) -> None:
    node = NODES[kind]
    assert kind in load_pack().NODE_DISPLAY_NAME_MAPPINGS
    assert set(node.INPUT_TYPES()) <= {"required", "optional", "hidden"}
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert callable(getattr(node, node.FUNCTION))
    for name, (type_, hints) in inputs(kind).items():
        default: Any = hints.get("default")
        if isinstance(type_, list):
            assert all(isinstance(choice, str) for choice in type_)
            assert default in (None, *type_)
        elif type_ in WIDGETS:
            assert isinstance(default, WIDGETS[type_]), name
            assert hints.get("min", default) <= default <= hints.get("max", default)
        else:
            assert type_ == type_.upper()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_give_every_node_what_it_takes(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    assert {node["class_type"] for node in graph.values()} <= {*HOST, *NODES}
    assert {node["class_type"] for node in graph.values()} & set(NODES)
    for node in graph.values():
        if node["class_type"] not in NODES:
            continue
        known = inputs(node["class_type"])
        assert set(node["inputs"]) <= set(known)
        assert set(NODES[node["class_type"]].INPUT_TYPES()["required"]) <= set(node["inputs"])
        for name, value in node["inputs"].items():
            type_, hints = known[name]
            if isinstance(value, list):
                other = graph[value[0]]["class_type"]
                outputs = HOST[other] if other in HOST else NODES[other].RETURN_TYPES
                assert outputs[value[1]] == type_
            elif isinstance(type_, list):
                assert value in type_
            else:
                assert isinstance(value, WIDGETS[type_])
                assert hints.get("min", value) <= value <= hints.get("max", value)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_of_the_page_are_those_of_the_api(path: Path) -> None:
    """Links and widgets of the one format are derived from the other."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    page = json.loads((path.parent / path.name.replace("_api", "")).read_text(encoding="utf-8"))
    links = {link[0]: link for link in page["links"]}
    assert {str(node["id"]): node["type"] for node in page["nodes"]} == {
        number: node["class_type"] for number, node in graph.items()
    }
    for node in page["nodes"]:
        found: dict[str, Any] = {}
        for entry in node["inputs"]:
            if entry["link"] is not None:
                _, source, slot, target, _, _ = links[entry["link"]]
                assert target == node["id"]
                found[entry["name"]] = [str(source), slot]
        wanted = graph[str(node["id"])]["inputs"]
        assert found == {name: value for name, value in wanted.items() if isinstance(value, list)}
        if node["type"] not in NODES:
            continue
        values = iter(node["widgets_values"])
        for name, (type_, _) in inputs(node["type"]).items():
            if isinstance(type_, list) or type_ in WIDGETS:
                assert next(values) == wanted[name]
                if name == "seed":  # the page has "control after generate" beside a seed
                    assert next(values) == "fixed"
        assert list(values) == []


# what they do


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def images() -> Any:
    """IMAGE (T, H, W, 3), in whole grey levels as from a file."""
    return (tiny.clip(33)[0].permute(0, 2, 3, 1) * 255).round() / 255


def test_a_clip_is_edited_as_the_pipeline_does(model: Any, images: Any) -> None:
    edited, computed, drawn = NODES["StillframeEditVideo"]().edit(
        model, images, "sepia", seed=3, tolerance=3.0, motion="off", gop=0, cuts=False
    )
    assert edited.shape == drawn.shape == images.shape
    assert computed.shape == images.shape[:3]
    result = model(
        images.permute(0, 3, 1, 2), "sepia", method="prune:motion=off", seed=3, output_type="pt"
    )
    wanted = result.frames[0].permute(0, 2, 3, 1)
    assert (edited - wanted).abs().max() <= 0.5 / 255 + 1e-6  # a frame of a file has whole levels
    assert 0 < computed[-1].mean() < 1
    # what was not computed of a frame that nothing moved in stands still
    still = (computed[17:].sum(0) == 0) & (computed.shape[0] > 17)
    assert still.any()
    assert (edited[21:, still] == edited[20, still]).all()


@pytest.mark.parametrize("moving", [False, True], ids=["one picture", "as many as frames"])
def test_a_mask_confines_the_edit(model: Any, images: Any, moving: bool) -> None:
    mask = torch.zeros(images.shape[:3] if moving else (1, *images.shape[1:3]))
    mask[:, :, :48] = 1
    node = NODES["StillframeEditVideo"]()
    edits = {}
    for prompt in ("sepia", "night"):
        edits[prompt], computed, _ = node.edit(model, images, prompt, mask=mask, mask_mode="only")
        assert not computed[12:, :, 48:].any()
    # beyond it no prompt shows
    differ = (edits["sepia"] - edits["night"]).abs().amax((0, 1, 3))
    assert differ[:48].max() > 2 / 255
    assert differ[64:].max() == 0


def test_a_size_is_taken_and_other_options_are_read(model: Any, images: Any) -> None:
    big = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    edited, computed, drawn = NODES["StillframeEditVideo"]().edit(
        model, big[:13], "night", short_side=64, more="# all of it\ngop = 1\n\nrecovery = clean"
    )
    assert edited.shape == drawn.shape == (13, 64, 96, 3)
    assert computed.bool().all()
    with pytest.raises(ValueError, match="NAME = VALUE with a known name, got 'gap = 3'"):
        NODES["StillframeEditVideo"]().edit(model, images, "night", more="gap = 3")
    with pytest.raises(ValueError, match="gop is a whole number from 1"):
        NODES["StillframeEditVideo"]().edit(model, images, "night", more="gop = no")


@pytest.mark.parametrize("at_once", [1, 5, 33])
def test_a_stream_gives_a_clips_frames_a_block_later(model: Any, images: Any, at_once: int) -> None:
    node, whole = NODES["StillframeStreamEdit"](), NODES["StillframeEditVideo"]()
    late = model.timeline.later_frames - 1
    given: list[Any] = []
    parts = images.split(at_once)
    for number, part in enumerate(parts, 1):
        (out,) = node.edit(model, part, "sepia", seed=3, finish=number == len(parts))
        pushed = min(number * at_once, len(images))
        given += list(out) if isinstance(out, torch.Tensor) else []
        if number < len(parts):
            assert len(given) == max(pushed - late, 0)
    assert torch.equal(torch.stack(given), whole.edit(model, images, "sepia", seed=3)[0])


def test_a_stream_follows_its_prompt_and_begins_anew(model: Any, images: Any) -> None:
    def frames(node: Any, prompts: list[str], **last: Any) -> Any:
        outs = []
        for number, part in enumerate(images[:24].split(12)):
            more = last if number else {}
            (out,) = node.edit(model, part, prompts[number], seed=3, **more)
            outs += list(out) if isinstance(out, torch.Tensor) else []
        return torch.stack(outs)

    same = frames(NODES["StillframeStreamEdit"](), ["sepia", "sepia"], finish=True)
    turned = frames(NODES["StillframeStreamEdit"](), ["sepia", "night"], finish=True)
    assert torch.equal(same[:9], turned[:9])  # the block that was done
    assert not torch.equal(same[9:], turned[9:])
    node = NODES["StillframeStreamEdit"]()
    first = frames(node, ["sepia", "sepia"], finish=True)
    assert torch.equal(frames(node, ["sepia", "sepia"], finish=True), first)
    assert node.IS_CHANGED() != node.IS_CHANGED()
