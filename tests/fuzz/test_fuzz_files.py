"""Damaged weights, configurations, masks, traces, recipes and styles; any strings and numbers.

Each ends in success or in one sentence.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tests.edit_fixtures import model_folder_fixture  # noqa: F401
from tests.fuzz.damage import damaged, generator, held, refused

from stillframe.controls import Box, GivenMasks, Gop, Guard, Rate, RateTrace, Refresh
from stillframe.controls.masks import MaskHeader, MaskRecorder
from stillframe.controls.trace import Timing
from stillframe.loading.checkpoint import read_file
from stillframe.loading.load import load_pipeline
from stillframe.loading.prompts import clean_prompt
from stillframe.loading.recipes import read_recipes
from stillframe.loading.styles import load_styles, place
from stillframe.tokens.schedule import check_sigmas
from stillframe.untrusted.numbers import check_number
from stillframe.untrusted.printable import csv_cell, markdown_text, printable
from stillframe.untrusted.small_files import parse_json, parse_toml

CASES = 150
RECIPE = b"""[mine]
title = "Mine"
repo = "someone/thing"
file = "model.pt"
base = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
keys = ["generator_ema"]
steps = [1000, 750.0, 500, 250]
warp = true
shift = 5.0
block = 3
window = 21
sink = 0
"""
STYLES = [{"name": f"s{i}", "prompt": f"as {i}", "summary": "", "keywords": ["k"]} for i in (1, 2)]


def samples(folder: Path) -> dict[str, bytes]:
    """Good files by name."""
    recorder = MaskRecorder()
    for index in range(4):
        recorder.add(torch.arange(3 * 6 * 8).view(1, 3, 6, 8) % (index + 2) == 0)
    recorder.masks(MaskHeader(3, 6, 8, 16, 4, 48)).write(folder / "masks")
    keep, steps = torch.zeros(1, 3, 6, 8, dtype=torch.bool), torch.arange(3 * 6 * 8 * 2.0)
    for index in range(4):
        recorder.add(keep, (steps * index / 16).view(1, 3, 6, 8, 2))
    header = MaskHeader(3, 6, 8, 16, 4, 96, motion="full")
    recorder.masks(header).write(folder / "moving masks")
    RateTrace(tuple(Timing(i / 8, i / 3) for i in range(8))).write(folder / "trace")
    tensors = {f"blocks.{i}.weight": torch.ones(4, 4) for i in range(6)}
    torch.save(tensors, folder / "weights.pt")
    return {
        "masks": (folder / "masks").read_bytes(),
        "moving masks": (folder / "moving masks").read_bytes(),
        "trace": (folder / "trace").read_bytes(),
        "recipes.toml": RECIPE,
        "styles.json": json.dumps(STYLES).encode(),
        "weights.safetensors": save(tensors),
        "weights.pt": (folder / "weights.pt").read_bytes(),
    }


def use_masks(path: Path) -> None:
    masks = GivenMasks.read(path)
    for number in range(len(masks.blocks)):
        assert masks.block(number).dtype == torch.bool
        motion = masks.motion(number)
        assert motion is None or motion.shape == (*masks.block(number).shape, 2)


def use_styles(path: Path) -> None:
    place("a photo in sepia", load_styles(path.parent))


READERS: dict[str, Callable[[Path], object]] = {
    "masks": use_masks,
    "moving masks": use_masks,
    "trace": RateTrace.read,
    "recipes.toml": read_recipes,
    "styles.json": use_styles,
    "weights.safetensors": read_file,
    "weights.pt": read_file,
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, fuzz_scale: int, tmp_path: Path) -> None:
    good = samples(tmp_path)
    path = tmp_path / name
    path.write_bytes(good[name])
    READERS[name](path)
    for number in range(CASES * fuzz_scale):
        rng = generator(f"file {name}", number)
        path.write_bytes(damaged(good[name], [*good.values()][int(rng.integers(len(good)))], rng))
        with held(f"{name} {number}", tmp_path, 5):
            try:
                READERS[name](path)
            except Exception as error:
                refused(error)


def absurd(found: Any, rng: np.random.Generator) -> Any:
    """A configuration with one of its values replaced."""
    keys = [key for key in found if not key.startswith("_")]
    key = keys[int(rng.integers(len(keys)))]
    values = [0, -1, 10**9, 10**30, 1.5, "x", None, [], {}, [1] * 9, True, "1" * 50, [[2]]]
    return {**found, key: values[int(rng.integers(len(values)))]}


def test_damaged_configurations(model_folder: Path, fuzz_scale: int, tmp_path: Path) -> None:
    """Of a whole model, whose parts diffusers loads."""
    names = ("model_index.json", "transformer/config.json", "vae/config.json",
             "text_encoder/config.json", "tokenizer/tokenizer.json",
             "scheduler/scheduler_config.json")  # fmt: skip
    folder = tmp_path / "model"
    folder.symlink_to(model_folder)
    good = {name: (model_folder / name).read_bytes() for name in names}
    load_pipeline(str(folder), device="cpu", vae="full")
    for number in range(8 * fuzz_scale):
        rng = generator("configuration", number)
        name = names[int(rng.integers(len(names)))]
        if rng.random() < 0.6 and "tokenizer" not in name:
            data = json.dumps(absurd(json.loads(good[name]), rng)).encode()
        else:
            data = damaged(good[name], good[names[0]], rng)
        try:
            (model_folder / name).write_bytes(data)
            with held(f"{name} {number}", tmp_path, 30, 2_000_000):
                try:
                    load_pipeline(str(folder), device="cpu", vae="full")
                except Exception as error:
                    refused(error)
        finally:
            (model_folder / name).write_bytes(good[name])


# strings and numbers


def settled(scale: int) -> Any:
    return settings(
        max_examples=60 * scale, derandomize=True, database=None, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


WILD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([10**30, -(10**30), 10**400, float("nan"), float("inf"), 0, -0.0, 1e-320]),
)  # fmt: skip
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=200)


def test_any_text_is_shown_in_one_line(fuzz_scale: int) -> None:
    @settled(fuzz_scale * 3)
    @given(TEXT)
    def check(text: str) -> None:
        made = printable(text)
        assert printable(made) == made
        assert len(f"{made}.".splitlines()) == 1
        assert made.isascii() or made.encode()
        assert "\x1b" not in made
        assert not str(csv_cell(text)).startswith(("=", "@", "\t", "\r"))
        assert "|" not in markdown_text(text).replace("\\|", "")

    check()


def test_any_number_is_in_bounds_or_refused(fuzz_scale: int) -> None:
    makers: list[Callable[[Any], object]] = [
        lambda value: Gop(value), lambda value: Refresh(value), lambda value: Guard(value),
        lambda value: Guard(0.1, value), lambda value: Rate(fps=value),
        lambda value: Rate(latency=value), lambda value: Rate(kept=value),
        lambda value: Rate(kept=0.5, limit=value), lambda value: Box(0, 0, value, 1),
        lambda value: check_sigmas([value]), lambda value: check_number("n", value, 0, 9),
    ]  # fmt: skip

    @settled(fuzz_scale * 3)
    @given(st.sampled_from(makers), WILD)
    def check(make: Callable[[Any], object], value: Any) -> None:
        # fields are typed: other kinds than numbers are a programmer's fault
        if isinstance(value, int | float) or make is makers[-1]:
            with contextlib.suppress(ValueError):
                make(value)

    check()


def test_any_prompt_is_cleaned_or_refused(fuzz_scale: int) -> None:
    @settled(fuzz_scale)
    @given(TEXT)
    def check(text: str) -> None:
        with contextlib.suppress(ValueError):
            assert clean_prompt(clean_prompt(text)) == clean_prompt(text)

    check()


def test_any_text_is_settings_or_none(fuzz_scale: int) -> None:
    @settled(fuzz_scale * 3)
    @given(st.one_of(TEXT, st.from_regex(r'\A[\[\]{}a."=1,\n]{0,300}\Z')))
    def check(text: str) -> None:
        for parse in (parse_json, parse_toml):
            with contextlib.suppress(ValueError):
                parse(text)

    check()
