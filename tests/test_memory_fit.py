"""What `--fit` chooses, against plans of single measures and against what streams really hold."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.test_memory import MEASURED, reachable
from tests.test_plans import nothing_there  # noqa: F401
from tests.video_samples import gradient, make_video
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.errors import ModelError
from stillframe.jobs.job import fit_of
from stillframe.kernels.linear import is_packed
from stillframe.kernels.offload import is_offloaded
from stillframe.loading.adapt import save_memory
from stillframe.loading.assemble import Task, plan
from stillframe.loading.fit import GB, Fit, find_fit
from stillframe.loading.load import find_source, fit_pipeline, load_pipeline, working_size
from stillframe.loading.recipes import load_recipes

CPU, CARD = torch.device("cpu"), torch.device("cuda")
BFLOAT16 = torch.bfloat16


def fitted(name: str, gigabytes: float, task: Task | None = None, vae: str | None = None) -> Fit:
    source = find_source(name, vae)
    return find_fit(source, BFLOAT16, task or Task(), CARD, int(gigabytes * GB))


# what is chosen


@pytest.mark.parametrize("name", load_recipes())
def test_every_recipe_fits_a_large_card_as_it_is(name: str) -> None:
    found = fitted(name, 80)
    assert found.task == Task()
    assert found.measures == ()
    assert found.peak == plan(find_source(name), BFLOAT16, Task(), CARD).peak


def test_a_sink_that_is_an_average_is_kept_exact_with_a_block_beside_it() -> None:
    """In FP8 a thousandth of the latest block would be lost; nothing else is left out."""
    plain, averaged = fitted("self-forcing", 7.0).task, fitted("reward-forcing", 8.0).task
    assert (plain.cache, plain.weights, plain.window) == ("fp8", "fp8", None)
    assert (averaged.cache, averaged.weights, averaged.window) == ("auto", "fp8", None)
    assert averaged.offloaded > 0


def steps(task: Task) -> tuple[Any, ...]:
    """How far each measure goes, in the order in which they are taken."""
    window = -100 if task.window is None else -task.window
    return task.cache == "fp8", task.weights == "fp8", window, task.offloaded


def _counted(taken: tuple[Any, ...]) -> tuple[int, ...]:
    cache, weights, window, offloaded = taken
    return int(cache), int(weights), int(window > -100), int(offloaded > 0)


def test_less_memory_takes_more_measures_and_none_before_its_turn() -> None:
    source = find_source("krea-14b")
    sizes = [45, 38, 27, 24, 11.95]
    found = [fitted("krea-14b", size) for size in sizes]
    for size, one in zip(sizes, found, strict=True):
        planned = plan(source, BFLOAT16, one.task, CARD)
        assert planned == one.plan
        assert planned.editing <= size * GB
        # some is left for the allocator, unless nothing is left to do
        done = one.task.offloaded == source.config("transformer")["num_layers"]
        assert done or planned.editing <= 0.96 * size * GB
        assert one.text_on_cpu == (planned.encoding > size * GB)
        assert one.peak <= size * GB
    taken = [steps(one.task) for one in found]
    pairs = [pair for two in pairwise(taken) for pair in zip(*two, strict=True)]
    assert all(before <= after for before, after in pairs)
    # each one is needed: a little less of the last is too much
    for size, one in zip(sizes, found, strict=True):
        milder = None
        if one.task.offloaded:
            milder = replace(one.task, offloaded=one.task.offloaded - 1)
        elif one.task.window is not None:
            milder = replace(one.task, window=one.task.window + 1)
        elif one.task.weights == "fp8":
            milder = replace(one.task, weights="exact")
        elif one.task.cache == "fp8":
            milder = replace(one.task, cache="auto")
        if milder is not None:
            assert plan(source, BFLOAT16, milder, CARD).editing > 0.96 * size * GB
    assert {sum(step > 0 for step in one) for one in map(_counted, taken)} >= {1, 2, 3, 4}


def test_the_goals_of_published_models() -> None:
    assert fitted("self-forcing", 12).task == Task()
    eight = fitted("self-forcing", 8)
    assert (eight.task, eight.text_on_cpu) == (Task(cache="fp8"), True)
    assert fitted("krea-14b", 48).task == Task(cache="fp8")
    assert 0 < fitted("krea-14b", 24).task.offloaded < 10


def test_what_is_asked_for_is_not_changed() -> None:
    asked = Task(store="exact", cache="exact", offloaded=40)
    found = fitted("krea-14b", 24, asked)
    assert (found.task.store, found.task.cache, found.task.offloaded) == ("exact", "exact", 40)
    assert found.task.weights == "fp8"


def test_what_cannot_fit_is_refused_with_what_it_needs() -> None:
    with pytest.raises(ModelError) as told:
        fitted("krea-14b", 6)
    text = str(told.value)
    assert text.startswith("krea-14b at 832x480 needs ")
    assert text.endswith("and 6 GB are allowed: try a smaller --height")
    with pytest.raises(ModelError, match=r"try --vae tiny, which needs \d\.\d\d GB$") as other:
        fitted("self-forcing", 6, vae="full")
    least = float(str(other.value).split()[-2])
    with pytest.raises(ModelError, match="a smaller --height"):
        fitted("self-forcing", least - 0.02)
    fitted("self-forcing", least + 0.02)


# what is held


MEASURES = [
    Task(64, 96),
    Task(64, 96, cache="fp8"),
    Task(64, 96, weights="fp8"),
    Task(64, 96, store="fp8"),
    Task(64, 96, window=4),
    Task(64, 96, offloaded=2),
    Task(64, 96, store="fp8", cache="fp8", weights="fp8", window=5, offloaded=1),
]


@pytest.mark.parametrize("task", MEASURES)
def test_each_measure_is_planned_as_it_is_held(task: Task) -> None:
    pipe = load_pipeline("tiny")
    planned = plan(find_source("tiny"), torch.float32, task, CPU)
    save_memory(pipe, task, CPU)
    stream = pipe.stream("oil painting", method="prune")
    while not stream.blocks:
        stream.push(torch.rand(1, 24, 3, 64, 96))
    assert stream.memory == {"cache": planned.cache, "recovery": planned.recovery}
    weights = [*pipe.transformer.parameters(), *pipe.transformer.buffers()]
    held = sum(reachable(*weights).values())
    # places of offloaded layers begin at multiples of 256 bytes
    assert planned.transformer * 0.97 <= held <= planned.transformer
    assert is_packed(pipe.transformer) == (task.weights == "fp8")
    assert sum(map(is_offloaded, pipe.transformer.blocks)) == task.offloaded


@pytest.mark.slow
def test_a_process_stays_below_what_it_was_fitted_to() -> None:
    """As `stillframe edit --fit` does it, with 3 of the bundled model's measures."""
    usual = plan(find_source("tiny"), torch.float32, Task(240, 416), CPU)
    found = find_fit(
        find_source("tiny"), torch.float32, Task(240, 416), CPU, usual.peak - usual.recovery // 2
    )
    assert found.measures
    script = MEASURED.replace(
        'load_pipeline("tiny", device="cpu")',
        f'load_pipeline("tiny", device="cpu", task=Task(240, 416), fit={found.budget / GB})',
    ).replace("import torch\n", "import torch\nfrom stillframe.loading.assemble import Task\n")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    _, measured = map(int, done.stdout.split())
    assert 0.7 * found.peak <= measured <= found.budget


# the command line


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.usefixtures("nothing_there")
def test_a_plan_needs_neither_network_nor_card() -> None:
    done = ask("models", "plan", "krea-14b", "--fit", "24")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "GB of 24 GB, and to save memory:" in line)
    assert [line[:2] for line in lines[start + 1 :]] == ["- "] * len(lines[start + 1 :])
    assert any("stay on the CPU" in line for line in lines[start:])
    refused = ask("models", "plan", "krea-14b", "--fit", "4")
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert "needs" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_an_edit_says_what_it_does_to_fit(tmp_path: Path) -> None:
    clip = tmp_path / "in.mp4"
    make_video(clip, [gradient(index, 96, 64) for index in range(13)])
    arguments = ["edit", str(clip), "-o", str(tmp_path / "out.mp4"), "--prompt", "oil painting"]
    # no size is given: that of the clip
    task = Task(64, 96)
    usual = fit_pipeline("tiny", 8, device="cpu", task=task)
    assert usual.lines()[0].endswith("of 8 GB: nothing has to be done to save memory")
    size = (usual.peak - 10_000) / GB
    done = ask(*arguments, "--fit", str(size), "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "what recovery stores is stored in FP8" in done.stderr
    assert (tmp_path / "out.mp4").is_file()
    refused = ask(*arguments[:3], str(tmp_path / "no.mp4"), *arguments[4:], "--fit", ".1")
    assert refused.exit_code == 2
    assert "tiny at 96x64 needs" in refused.stderr
    assert not (tmp_path / "no.mp4").exists()


@cache
def _tiny() -> Any:
    return load_pipeline("tiny", device="cpu")


@pytest.mark.parametrize("asked", [{}, {"height": 100}, {"height": 64, "width": 64}])
@pytest.mark.parametrize("frames", [(1920, 1080), (96, 64), (720, 1280), (101, 37)])
def test_the_size_that_is_planned_for_is_the_one_that_is_run(
    frames: tuple[int, int], asked: dict[str, int]
) -> None:
    """As the file's job works it out from the pipeline, once that is loaded."""
    pipe = _tiny()
    reader = SimpleNamespace(width=frames[0], height=frames[1])
    fit = fit_of(pipe, reader, asked.get("height"), asked.get("width"))  # type: ignore[arg-type]
    planned = working_size("tiny", frames=frames, **asked)  # type: ignore[arg-type]
    assert planned == (fit.padded_height, fit.padded_width)


def test_a_video_that_is_made_is_planned_at_its_own_size() -> None:
    assert working_size("self-forcing", generate=True) == (480, 832)
    assert working_size("longlive-2", generate=True, height=704) == (704, 1216)
    assert working_size("longlive-2", frames=(100, 70)) == (96, 128)
