"""`DiffusionPipeline.from_pretrained(folder, custom_pipeline=...)` gives our pipeline, offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tests import tiny

from stillframe import CausalWanPipeline

CUSTOM = Path(__file__).parents[1] / "integrations" / "diffusers"


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "of diffusers' own class"])
def test_a_custom_pipeline_edits_as_ours_does(
    stock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder names diffusers' class, which has the same parts."""
    model, modules = tmp_path / "model", tmp_path / "modules"
    ours = tiny.pipeline(wan=True)
    ours.save_pretrained(model)
    if stock:
        index = json.loads((model / "model_index.json").read_text())
        index = {name: value for name, value in index.items() if isinstance(value, list)}
        index |= {"_class_name": "WanPipeline", "_diffusers_version": "0.42.1"}
        (model / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", list(sys.path))
    loaded = DiffusionPipeline.from_pretrained(
        model, custom_pipeline=str(CUSTOM), trust_remote_code=True
    )
    assert type(loaded) is CausalWanPipeline
    loaded.set_progress_bar_config(disable=True)

    video, embeds = tiny.clip(9)[0], torch.randn(1, 12, tiny.TEXT_DIM)
    edits: list[Any] = [pipe(video, prompt_embeds=embeds, seed=0) for pipe in (ours, loaded)]
    assert np.array_equal(edits[0].frames, edits[1].frames)
