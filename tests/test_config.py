"""One configuration of an edit: from options, from Python, on the command line, in sessions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import typer
from tests import tiny
from tests.edit_fixtures import (
    clip_path_fixture,  # noqa: F401
    model_folder_fixture,  # noqa: F401
    tiny_pipe_fixture,  # noqa: F401
)
from tests.live_fixtures import (
    embeds,
    file_path,
    levels,
    open_session,
    pipe_fixture,  # noqa: F401
    pixels,
    play,
    read,
)
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.cli.command import flag
from stillframe.config import DENOISING, OPTIONS, EditConfig, edit_options
from stillframe.controls import Controls, Cuts, Gop, Guard, Rate, Refresh
from stillframe.controls.base import control_kinds
from stillframe.engine.settings import CACHES, EXECUTIONS, PRODUCTS, STORES
from stillframe.evaluation.variants import expand
from stillframe.jobs.edit import edit_file
from stillframe.live import SessionError, Worker
from stillframe.methods import as_method, find_method, methods, split_methods
from stillframe.methods.prune import MOTIONS, InterFramePruning
from stillframe.options import Option
from stillframe.server.client_config import ClientConfig
from stillframe.server.messages import Update, parse_message


def commands(found: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by the words that call it."""
    if hasattr(found, "commands"):
        for name, inner in found.commands.items():
            yield from commands(inner, (*names, name))
    else:
        yield names, found


COMMANDS = dict(commands(typer.main.get_command(app)))


# methods as text


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("prune", {}),
        ("runlength:threshold=0.05", {"threshold": 0.05}),
        (" prune : tolerance = 5 , hold=false", {"tolerance": 5.0, "hold": False}),
        ("prune:recovery=none,tau1=0,tau2=1e-2", {"recovery": "none", "tau1": 0.0, "tau2": 0.01}),
        ("tome:rate=.25", {"rate": 0.25}),
    ],
)
def test_a_name_sets_any_field(text: str, given: dict[str, Any]) -> None:
    kind = find_method(text.partition(":")[0].strip())
    assert as_method(text) == kind(**given)
    assert EditConfig.from_options({"method": text}).method == kind(**given)
    assert expand([text])[0].build() == kind(**given)


def test_every_field_of_every_method_can_be_written_as_text() -> None:
    for name, kind in methods().items():
        if not kind.__module__.startswith("stillframe."):
            continue
        usual = kind()
        for field in fields(kind):
            value = getattr(usual, field.name)
            if value is not None:
                assert as_method(f"{name}:{field.name}={value}") == usual


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runlength:tresh=1", "method 'runlength' has no tresh; it has recovery, tau2, trim, thre"),
        ("runlength:threshold=much", "runlength:threshold is a number, got 'much'"),
        ("runlength:threshold", "runlength:threshold is a number, got ''"),
        ("runlength:threshold=nan", "runlength:threshold is a number, got 'nan'"),
        ("prune:tolerance=inf", "prune:tolerance is a number, got 'inf'"),
        ("prune:hold=maybe", "prune:hold is true or false, got 'maybe'"),
        ("prune:recovery=magic", "unknown recovery 'magic'"),
        ("runlength:threshold=-1", "threshold must not be negative"),
        ("half:threshold=1", "unknown method 'half'; known: full"),
    ],
)
def test_a_wrong_field_is_a_sentence_that_lists_what_there_is(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("'", ".")):
        as_method(text)


def test_lists_keep_the_fields_of_a_method_together() -> None:
    text = "full, prune:tolerance=5,rate=0.2 ,runlength:threshold=.1,tome"
    assert split_methods(text) == [
        "full", "prune:tolerance=5,rate=0.2", "runlength:threshold=.1", "tome",
    ]  # fmt: skip
    variants = expand(split_methods(text), rates=[0.1, 0.4], recoveries=["clean", "none"])
    found = [(v.method, dict(v.params).get("rate"), v.recovery) for v in variants]
    assert found[:3] == [
        ("full", None, "default"), ("prune", 0.2, "clean"), ("prune", 0.2, "none"),
    ]  # fmt: skip
    assert found[3:] == [
        ("runlength", 0.1, "default"), ("runlength", 0.4, "default"),
        ("tome", 0.1, "default"), ("tome", 0.4, "default"),
    ]  # fmt: skip


def test_a_method_as_text_is_the_object_in_python_and_on_the_command_line(
    tmp_path: Path, clip_path: Path, model_folder: Path, tiny_pipe: Any
) -> None:
    text, prompt = "runlength:threshold=0.2", "oil painting"
    method = as_method(text)
    shown = [edit_file(tiny_pipe, clip_path, tmp_path / "a.mkv", prompt=prompt, method=m, crf=0)
             for m in (text, method, "runlength")]  # fmt: skip
    assert shown[0].kept_share_blocks == shown[1].kept_share_blocks != shown[2].kept_share_blocks
    report = tmp_path / "r.json"
    arguments = ["edit", clip_path, "-o", tmp_path / "b.mkv", "--model", model_folder, "--quiet",
                 "--prompt", prompt, "--method", text, "--report", report]  # fmt: skip
    done = CliRunner().invoke(app, [str(x) for x in arguments])
    assert done.exit_code == 0, done.output
    assert str(list(shown[0].kept_share_blocks))[1:-1] in " ".join(report.read_text().split())
    kept = [
        [block.kept for block in tiny_pipe(tiny.clip(30)[0], "oil", method=m).blocks]
        for m in (text, method, "runlength")
    ]
    assert kept[0] == kept[1] != kept[2]


# options


def test_options_declared_are_options_registered() -> None:
    """A control whose options are no literals would have none on the command line."""
    declared = "from stillframe.config import edit_options as e; import sys; "
    declared += "assert 'torch' not in sys.modules; print(sorted(e()))"
    done = subprocess.run(
        [sys.executable, "-c", declared], capture_output=True, text=True, check=True
    )
    kinds = [k for k in control_kinds().values() if k.__module__.startswith("stillframe.")]
    registered = {name for kind in kinds for name in kind.options} | set(OPTIONS)
    assert done.stdout.strip() == str(sorted(registered))


def test_names_that_an_option_takes_are_those_of_a_stream() -> None:
    for name, known in (
        ("execution", EXECUTIONS),
        ("products", PRODUCTS),
        ("store", STORES),
        ("cache", CACHES),
    ):
        assert DENOISING[name].choices == known
        assert getattr(EditConfig(), name) == DENOISING[name].default
    assert OPTIONS["motion"].choices == MOTIONS


def test_every_number_of_every_command_has_bounds() -> None:
    lacking = [
        f"{' '.join(names)} {parameter.name}"
        for names, command in COMMANDS.items()
        for parameter in command.params
        if parameter.bare_type() in ("int", "float")
        and (parameter.min is None or parameter.max is None)
    ]
    assert not lacking, lacking
    for name, option in edit_options().items():
        if option.kind in ("int", "float"):
            for value in (10**30, -(10**30), float("nan"), float("inf"), 10**400):
                with pytest.raises(ValueError, match=f"{flag(name)} is "):
                    option.checked(flag(name), value)


def test_every_option_has_a_sentence_and_says_it_in_help() -> None:
    for names, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert parameter.help, (names, parameter.name)
                assert parameter.help[0].isupper(), parameter.help
                assert parameter.help[-1] == ".", parameter.help


def test_help_is_short_in_its_first_part_and_short_to_type() -> None:
    first = [p for p in COMMANDS[("edit",)].params if getattr(p, "rich_help_panel", None) is None]
    assert [p.name for p in first if p.param_type_name == "option"] == [
        "out", "prompt", "style", "model", "method", "tolerance", "strength", "height", "compare",
        "yes", "quiet",
    ]  # fmt: skip
    for names in [(), ("models",), *COMMANDS]:
        shown = [CliRunner().invoke(app, [*names, word]) for word in ("-h", "--help")]
        assert [done.exit_code for done in shown] == [0, 0], names
        assert shown[0].stdout == shown[1].stdout


def test_a_server_takes_what_an_edit_takes_but_for_files() -> None:
    edit, serve = (
        {p.name for p in COMMANDS[(name,)].params if p.param_type_name == "option"}
        for name in ("edit", "serve")
    )
    files = {
        "out", "prompt", "style", "compare", "preview", "yes", "quiet", "report", "frames", "crf",
        "map", "input_format", "output_format", "input_timeout", "background", "cuts_by",
        "masks_in", "masks_out", "two_pass", "rate_trace_in", "rate_trace_out",
    }  # fmt: skip
    assert edit - serve == files
    assert {"vae", "lora", "attention", "execution", "products", "store", "guard"} <= serve


def test_values_make_what_python_makes() -> None:
    values = {
        "method": "prune:tolerance=9", "tolerance": 5, "recovery": "clean", "strength": 0.5,
        "steps": 2, "store": "fp8", "seed": 3, "refresh": 4, "gop": None, "cuts": True,
        "target_kept": 0.5, "rate_mode": "capped", "guard": 0.05, "motion": "global",
    }  # fmt: skip
    assert EditConfig.from_options(values) == EditConfig(
        InterFramePruning(recovery="clean", tolerance=5.0, motion="global"),
        Controls(Refresh(4), Cuts(), Rate(kept=0.5, mode="capped"), Guard(0.05)),
        strength=0.5,
        num_inference_steps=2,
        store="fp8",
        seed=3,
    )
    assert EditConfig.from_options({"gop": 3, "sigmas": "0.9,0.5", "detector": "latent"}) == (
        EditConfig(InterFramePruning(detector="latent"), Controls(Gop(3)), sigmas=(0.9, 0.5))
    )
    assert EditConfig.from_options({}).method == as_method(EditConfig().method)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"thoroughness": 3}, "there is no option --thoroughness"),
        ({"steps": 0}, "--steps is a whole number from 1 to 1000, got 0"),
        ({"strength": 0}, "--strength is a number above 0 up to 1, got 0"),
        ({"sigmas": (0.5, float("nan"))}, "--sigmas is numbers between commas, each from 0 to 1"),
        ({"method": "full", "tolerance": 3}, "method 'full' has no tolerance"),
        ({"method": "tome", "motion": "off"}, "method 'tome' has no motion"),
        ({"motion": "some"}, "--motion is off, global or full, got 'some'"),
        ({"motion": "full", "detector": "latent"}, "motion 'full' needs the detector 'pixels'"),
        ({"method": "full", "guard": 0.1}, "method 'full' reuses nothing"),
        ({"detector": "codec", "tau1": 0.1}, "--tau1 and --tau2 are thresholds of --detector lat"),
        ({"rate_mode": "capped"}, "--rate-mode needs --target-fps"),
    ],
)
def test_wrong_values_are_a_sentence_with_the_callers_names(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        EditConfig.from_options(values, named=flag)


def test_a_control_of_a_user_is_an_option_of_every_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thirds(Gop):
        name = "thirds"
        options: ClassVar = {
            "thirds": Option("int", "Compute a whole block every N.", least=1, most=9)
        }

    from stillframe.controls import base

    monkeypatch.setitem(base._REGISTRY._kinds, "thirds", Thirds)
    # the command line is built anew, as that of a program that starts with it
    monkeypatch.setattr("typer.testing._get_command", typer.main.get_command)
    assert "thirds" in edit_options()
    for command in ("edit", "serve"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert "--thirds" in shown.stdout
    done = CliRunner().invoke(app, ["edit", "a", "-o", "b.mkv", "--prompt", "x", "--thirds", "10"])
    assert done.exit_code == 2
    assert "--thirds" in done.stderr


# changes


def test_changes_keep_the_rest() -> None:
    before = EditConfig("prune", Controls(Gop(3)), strength=0.4, num_inference_steps=3)
    after = before.changed(3, tolerance=7.0, strength=None, method=None)
    assert after == EditConfig(
        InterFramePruning(tolerance=7.0), before.control, strength=0.4, num_inference_steps=3
    )
    assert after.changed(3, control=None).control is None
    assert after.changed(3, strength=0.8).settings == {**after.settings, "strength": 0.8}
    levels = before.changed(3, sigmas=(0.9, 0.4))
    assert (levels.sigmas, levels.strength, levels.num_inference_steps) == ((0.9, 0.4), None, None)
    # a strength alone keeps the number of passes
    again = levels.changed(2, strength=0.3)
    assert (again.sigmas, again.strength, again.num_inference_steps) == (None, 0.3, 2)
    with pytest.raises(ValueError, match="method 'prune' has no threshold"):
        before.changed(3, threshold=1.0)
    with pytest.raises(TypeError, match="there is no argument 'thoroughness'"):
        EditConfig.of(before, {"thoroughness": 1})


def test_a_client_keeps_what_another_method_does_not_use() -> None:
    first = ClientConfig({"tau1": 0.1, "recovery": "clean", "seed": 4})
    assert first.config == EditConfig(InterFramePruning(recovery="clean", tau1=0.1), seed=4)
    full = first.changed(parse_message(Update, {"method": "full"}))
    assert full.config == EditConfig(find_method("full")(), seed=4)
    back = full.changed(parse_message(Update, {"method": "runlength:threshold=0.2"}))
    assert back.config.method == as_method("runlength:threshold=0.2", recovery="clean")
    assert back.changed(parse_message(Update, {"method": "prune"})).config == first.config


# sessions


@pytest.mark.parametrize(
    "settings",
    [
        {"execution": "fused"},
        {"store": "fp8"},
        {"execution": "fused", "store": "fp8", "method": "prune:detector=latent"},
        {"execution": "fused", "products": "fp8"},
        {"execution": "reference", "conditioning": "sdedit", "sigmas": (0.8, 0.4)},
    ],
)
def test_a_session_runs_with_every_setting_of_a_file(pipe: Any, settings: dict[str, Any]) -> None:
    worker, frames = Worker(), levels(48)
    with open_session(pipe, worker, policy="all", config=EditConfig(**settings)) as session:
        shown = play(session, worker, frames)
        session.end()
        while worker.step():
            shown += read(session)
        rest = {**settings, "method": as_method(settings.get("method", "prune"))}
        assert np.array_equal(pixels(shown), file_path(pipe, frames, **rest))
        usual = file_path(pipe, frames, method=rest["method"])
        assert "sigmas" not in settings or not np.array_equal(pixels(shown), usual)


def test_what_a_session_is_set_up_with_cannot_change_and_nothing_ends(pipe: Any) -> None:
    worker = Worker()
    with open_session(pipe, worker, policy="all", execution="fused", seed=5) as session:
        play(session, worker, levels(12))
        for change in (
            {"store": "fp8"}, {"execution": "reference"}, {"products": "fp8"}, {"seed": 6},
            {"config": EditConfig(store="fp8")},
        ):  # fmt: skip
            before = session.request
            with pytest.raises(ValueError, match="cannot change, from"):
                session.change(**change)
            assert session.request is before
        session.change(config=EditConfig("full", execution="fused"), strength=0.6)
        assert session.request.config.seed == 5
        assert session.request.method == find_method("full")()
        assert len(play(session, worker, levels(24, seed=1), start=9)) > 0
        assert session.error is None
    with pytest.raises(SessionError):
        session.change(strength=0.5)


def test_a_session_takes_a_region_in_shares_only(pipe: Any) -> None:
    config = EditConfig.from_options({"roi": "10,0,20,20"})
    with pytest.raises(ValueError, match="in shares of the picture"):
        open_session(pipe, Worker(), config=config)


# the same everywhere


def test_a_configuration_is_its_fields_everywhere(pipe: Any) -> None:
    video = tiny.clip(30)
    config = EditConfig("prune", Controls(Gop(2)), strength=0.7, seed=3)
    options = {"method": "prune", "control": Controls(Gop(2)), "strength": 0.7}
    usual = {"prompt_embeds": embeds(), "output_type": "pt"}
    made = [
        pipe(video[0], **usual, **given).frames
        for given in (
            {"config": config},
            {"generator": torch.Generator().manual_seed(3), **options},
            {"config": EditConfig("full", seed=3), **options},
        )
    ]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    with pytest.raises(TypeError, match="no argument 'thoroughness'"):
        pipe.stream(prompt_embeds=embeds(), thoroughness=3)
    with pytest.raises(TypeError, match="no argument 'method'; known are num_inference_steps, sig"):
        pipe.generate_stream(prompt_embeds=embeds(), method="full")


# start-up


@pytest.mark.parametrize(
    "words", ["--help", "-h", "edit --help", "serve -h", "methods", "styles", "models", "--version"]
)
def test_what_only_lists_imports_no_torch(words: str) -> None:
    code = (
        "import sys; from stillframe.cli.app import app; "
        f"app({words.split()}, standalone_mode=False); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'av', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
