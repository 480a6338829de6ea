"""The detector benchmark: curves at equal error against hand-made ones, the rule, the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks.detector import SHAPES, ShapedPruning, measure
from benchmarks.detector_choice import choose, compared, curves, held_out, report

from stillframe.detection.latents import CausalMask, MaskShape
from stillframe.methods import methods

SCALES = (0.5, 1.0, 2.0)


def rows(
    shapes: dict[str, Callable[[float, int], tuple[float, float]]], clips: int = 10
) -> list[dict[str, Any]]:
    """Rows of shapes given as functions of scale and clip to share pruned and error."""
    found = []
    for clip in range(clips):
        for shape, curve in shapes.items():
            for scale in SCALES:
                pruned, error = curve(scale, clip)
                row = {"clip": f"c{clip}", "conditioning": "source", "shape": shape}
                found.append({**row, "scale": scale, "pruned": pruned, "error": error})
                found[-1]["flicker"] = 1.0
    return found


def usual(scale: float, clip: int) -> tuple[float, float]:
    return 0.2 * scale, 2.0 * scale * (1 + 0.1 * clip)


def better(scale: float, clip: int) -> tuple[float, float]:
    """At any error, half more: what 0.3 prunes costs what 0.2 did."""
    return 0.3 * scale, 2.0 * scale * (1 + 0.1 * clip)


def shifted(scale: float, clip: int) -> tuple[float, float]:
    """The same curve, each scale further along it."""
    return 0.3 * scale, 3.0 * scale * (1 + 0.1 * clip)


def test_gains_are_shares_at_the_defaults_error() -> None:
    data = curves(rows({"default": usual, "better": better, "shifted": shifted}))
    assert data.shapes == ["default", "better", "shifted"]
    default, up, along = compared(data)
    assert (default.gain, default.scale) == (0.0, 1.0)
    assert up.gain == pytest.approx(0.1)
    assert up.pruned == pytest.approx(0.3)
    # the same curve is no gain, and its thresholds have to be lower
    assert along.gain == pytest.approx(0.0)
    assert along.scale == pytest.approx(2 / 3)
    # where a curve begins above the default's error, it comes from nothing pruned, no error
    data = curves(rows({"default": usual, "far": lambda s, c: (0.6 * s, 8.0 * s * (1 + 0.1 * c))}))
    assert compared(data)[1].gain == pytest.approx(0.15 - 0.2)


def test_unfinished_clips_do_not_count() -> None:
    given = rows({"default": usual, "better": better})
    assert len(curves(given[:-1]).clips) == 9
    with pytest.raises(ValueError, match="got 0 whole clips of 1"):
        curves(given[:5])
    with pytest.raises(ValueError, match="the default's at 1 among them"):
        curves(rows({"better": better}))


def lucky(scale: float, clip: int) -> tuple[float, float]:
    """Better on every fifth clip, worse on all others."""
    factor = 3.0 if clip % 5 == 0 else 0.8
    return 0.2 * scale * factor, 2.0 * scale * (1 + 0.1 * clip)


def test_what_wins_by_luck_does_not_win_where_held_out() -> None:
    data = curves(rows({"default": usual, "lucky": lucky}))
    assert compared(data)[1].gain > 0
    gain, names = held_out(data)
    assert names.count("default") == 1  # in the fold that has its clips
    assert gain < compared(data)[1].gain
    verdict = json.loads(choose(rows({"default": usual, "lucky": lucky})).splitlines()[-1])
    assert verdict["best"] == "lucky"
    assert verdict["replaces"] is False


def test_the_rule_takes_what_is_better_everywhere_and_nothing_that_flickers() -> None:
    given = rows({"default": usual, "better": better})
    assert json.loads(choose(given).splitlines()[-1])["replaces"] is True
    told = json.loads(report(given).splitlines()[-1])
    assert told["better"]["low"] == pytest.approx(0.1)
    for row in given:
        if row["shape"] == "better":
            row["flicker"] = 1.1
    verdict = json.loads(choose(given).splitlines()[-1])
    assert (verdict["best"], verdict["replaces"]) == ("default", False)


def test_settings_are_what_their_names_say() -> None:
    method = ShapedPruning.of(SHAPES["default"], 1.0)
    assert (method.tau1, method.tau2, method.trim, method.shape) == (0.15, 0.30, 0.0, MaskShape())
    assert isinstance(method.selector(), CausalMask)
    wide = ShapedPruning.of(SHAPES["ratio-4"], 2.0)
    assert wide.tau2 == pytest.approx(4 * wide.thresholds[0])
    assert wide.thresholds[0] * wide.tau2 == pytest.approx(4 * 0.15 * 0.30)
    assert len({repr(setting) for setting in SHAPES.values()}) == len(SHAPES)
    assert ShapedPruning not in methods().values()


def test_errors_are_in_grey_levels() -> None:
    dense = torch.full((4, 3, 8, 8), 0.5)
    found = measure(dense, dense + 2 / 255, dense)
    assert found["error"] == pytest.approx(2.0, rel=1e-4)
    assert found["flicker"] == 0
