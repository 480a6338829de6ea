"""What README and docs show is run: their Python, their command lines, the options they name."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from tests import tiny
from tests.published import base_folder, publish

import stillframe
from stillframe.cli.app import app
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes, read_recipes

ROOT = Path(stillframe.__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "training" / "README.md", ROOT / "src/stillframe/models/tiny/README.md"]

#: What a page's reader has: a model, frames of a clip, a camera, a place to show pictures.
READERS = """
import numpy as np, torch
from tests import stock_pipelines, tiny
torch.set_num_threads(1)
frames = tiny.clip(20)
camera = [((x.permute(1, 2, 0) * 255).byte().numpy(), n / 25) for n, x in enumerate(frames[0])]
stock, clip = stock_pipelines.MAKERS["wan-v2v"](), stock_pipelines.clip()
call = dict(prompt_embeds=stock_pipelines.embeds(1), guidance_scale=1.0, num_inference_steps=2,
            height=64, width=96, output_type="pt")
shown = []
show = shown.append
"""


def fenced(language: str) -> list[Any]:
    """Code blocks of a language, named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{page.name}-{line}"))
    return found


def inline(page: Path) -> list[str]:
    """What stands in backticks in the text of a page, on one line."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to be in, where a small Self Forcing and an adapter of it are found by name."""
    folder = tmp_path_factory.mktemp("reader")
    base = base_folder(folder / "base")
    recipe = replace(load_recipes()["self-forcing"], lora=None)
    model, table = publish(folder, recipe, base)
    weights = {
        f"transformer.{layer}.lora_{side}.weight": torch.randn(shape) * 0.1
        for layer, x in model.state_dict().items()
        if layer.endswith("attn1.to_q.weight")
        for layer in [layer.removesuffix(".weight")]
        for side, shape in (("A", (2, x.shape[1])), ("B", (x.shape[0], 2)))
    }
    from safetensors.torch import save_file

    save_file(weights, folder / "style.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECIPES_VARIABLE, str(table))
        patch.setenv("STILLFRAME_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("code", fenced("python"))
def test_python_runs_as_it_stands(code: str, reader: Path) -> None:
    if "__main__" in code:
        exec(code + "    session.close()\n", {"__name__": "__main__"})
        return
    names: dict[str, Any] = {"__name__": "reader", "pipe": tiny.pipeline()}
    exec(READERS, names)
    exec(code, names)


def test_the_live_example_shows_every_frame(reader: Path) -> None:
    """The test of the test: a block that runs has done what it says."""
    names: dict[str, Any] = {"__name__": "reader"}
    exec(READERS, names)
    (code,) = (p.values[0] for p in fenced("python") if "session.end()" in p.values[0])
    exec(code.replace('"oil painting",', '"oil painting", policy="all",'), names)
    assert len(names["shown"]) > 0
    assert {picture.shape for picture in names["shown"]} == {(240, 416, 3)}


def test_objects_named_in_the_readme_come_from_the_package() -> None:
    """Calls in the text, such as methods with parameters, are made."""
    made = []
    for span in inline(ROOT / "README.md"):
        if re.fullmatch(r"[A-Z]\w+\(.*\)", span):
            call = ast.parse(span, mode="eval").body
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Name)
            assert call.func.id in stillframe.__all__, f"{span}: stillframe has no such name"
            made.append(eval(span, {call.func.id: getattr(stillframe, call.func.id)}))
    assert any(isinstance(one, stillframe.InterFramePruning) for one in made)


@pytest.mark.parametrize("table", fenced("toml"))
def test_recipes_are_read(table: str, tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text(table, encoding="utf-8")
    assert list(read_recipes(path)) == list(tomllib.loads(table))


@pytest.mark.parametrize("content", fenced("yaml"))
def test_settings_of_clusters_are_read_and_run_commands_that_there_are(content: str) -> None:
    found = yaml.safe_load(content)
    assert found
    lines = re.findall(r"stillframe batch [^'\n]*", content)
    assert lines
    for line in lines:
        parsed(shlex.split(line)[1:])


# command lines


def command_lines() -> list[str]:
    """Every ``stillframe ...`` that a page shows, indented or in backticks."""
    found: dict[str, None] = {}
    for page in PAGES:
        shown = re.findall(r"^    (.*stillframe .*)$", page.read_text(encoding="utf-8"), re.M)
        for line in [*shown, *inline(page)]:
            parts = [part.strip() for part in line.partition(" #")[0].split(" | ")]
            started = False
            for part in parts:
                # "stillframe styles | methods" are two commands, "| ffplay -" is a program
                if part.startswith("stillframe ") or (started and " " not in part):
                    found[part if part.startswith("stillframe ") else f"stillframe {part}"] = None
                    started = True
    del found["stillframe masks"]  # the first line of a mask file
    return list(found)


@cache
def commands() -> Any:
    """What the command line has."""
    return typer.main.get_command(app)


def parsed(words: list[str]) -> None:
    """Refuse what the command line would refuse before it looks at any file.

    Raises:
        Exception: an unknown command or option, or a value that is none.
    """
    command = commands()
    context = command.context_class(command, info_name="stillframe")
    while hasattr(command, "commands"):
        if not words and command.invoke_without_command:
            return
        name, *words = words or [""]
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
        context = command.context_class(command, parent=context, info_name=name)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    assert not rest, f"{rest} are too many"
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(value, str):
            parameter.process_value(context, value)


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_parse(line: str) -> None:
    parsed(shlex.split(line)[1:])


@pytest.mark.parametrize(
    "wrong", ["stillframe polish", "stillframe edit a -o b --cut", "stillframe edit a b c -o d"]
)
def test_command_lines_that_do_not_parse_are_told(wrong: str) -> None:
    with pytest.raises(Exception, match=r"polish|--cut|too many"):
        parsed(shlex.split(wrong)[1:])


def options(command: Any) -> set[str]:
    """Every option of a command and of those below it."""
    found = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found


def test_options_named_in_the_text_exist() -> None:
    known = options(commands()) | {"--help"}
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "training").rglob("*.py")]:
        known |= set(re.findall(r'"(--[a-z][\w.-]*)"', path.read_text(encoding="utf-8")))
    for page in PAGES:
        for span in inline(page):
            name = re.match(r"--[a-z][\w.-]*", span)
            assert name is None or name[0] in known, f"{page.name}: {span}"
