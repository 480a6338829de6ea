"""Imports flow one way, names are public on purpose, and importing does nothing."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import stillframe

SOURCE = Path(stillframe.__file__).parent
ROOT = SOURCE.parents[1]

# Lowest first: a package imports from its own floor and from those above it in this list, and no
# package imports, by way of others, itself. A new module goes into a package that is there.
LAYERS: list[tuple[str, set[str]]] = [
    (
        "ground",
        {
            "errors",
            "options",
            "untrusted",
            "registry",
            "turns",
            "models",
            "tokens",
            "kernels",
        },
    ),
    ("parts", {"attention", "autoencoders", "detection", "whole_file"}),
    ("choices", {"recovery", "methods"}),
    ("models of others", {"backbones"}),
    ("pipelines of others", {"hooks"}),
    ("controls", {"controls"}),
    ("configuration", {"config"}),
    ("engine", {"engine"}),
    ("pipelines", {"pipelines"}),
    ("files", {"video", "metrics"}),
    ("loading", {"loading"}),
    ("jobs", {"jobs"}),
    ("applications", {"evaluation", "live"}),
    ("server", {"server"}),
    ("study", {"study"}),
    ("command line", {"cli", "__main__"}),
]
LEVEL = {name: level for level, (_, names) in enumerate(LAYERS) for name in names}

# what the pipeline and all below it must not know: files, terminals, other people's frameworks
OUTSIDE = {"av", "rich", "typer", "cv2", "torchvision"}

# who may use OpenCV: for optical flow, which no package does without weights, and to ask what the
# processor has
OPENCV = {"detection.flow": {"cv2"}, "metrics.flow": {"cv2"}, "video.encoding": {"cv2"}}


# what only the server is made with
WEB = {"fastapi", "starlette", "uvicorn", "websockets", "httpx"}

# what only reports are made with
REPORTS = {"jinja2", "markupsafe", "matplotlib", "scipy"}


@cache
def files() -> dict[str, Path]:
    """Every module by dotted name, ``stillframe`` itself excluded."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = path
    return found


@cache
def imported(path: Path) -> list[str]:
    """Dotted names a file imports, in functions and under conditions as well."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; spell it out"
            assert node.module is not None
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@cache
def imported_at_once(path: Path) -> list[str]:
    """Dotted names that a file imports when it is imported: of no function, of no condition."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, by dotted name without ``stillframe``."""
    known, found = files(), set()
    for name in imported(path):
        head, _, rest = name.partition(".")
        if head == "stillframe":
            candidates = [rest, rest.rpartition(".")[0]]
            match = next((c for c in candidates if c in known), None)
            found.add(match if match is not None else rest)
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_has_a_layer() -> None:
    unknown = {top(name) for name in files()} - set(LEVEL)
    assert not unknown, (
        f"{', '.join(sorted(unknown))}: not in LAYERS of tests/test_architecture.py; a new module "
        f"goes into a package that is there (CONTRIBUTING has a line on each)"
    )
    assert len(LEVEL) == sum(len(names) for _, names in LAYERS), "a module stands in two layers"


def test_imports_flow_one_way() -> None:
    wrong = [
        f"{name} ({LAYERS[LEVEL[top(name)]][0]}) imports {other} ({LAYERS[LEVEL[top(other)]][0]})"
        for name, path in files().items()
        for other in sorted(own_imports(path))
        if LEVEL.get(top(other), 99) > LEVEL.get(top(name), 99)
    ]
    assert not wrong, "; ".join(wrong)


def test_nobody_imports_the_package_itself_for_what_a_module_holds() -> None:
    wrong = [
        f"{name} imports stillframe.{other}"
        for name, path in files().items()
        for other in own_imports(path)
        if other not in files()
    ]
    assert not [w for w in wrong if not w.endswith("__version__")], "; ".join(wrong)


def test_there_is_no_cycle() -> None:
    """Within a layer, too, and counting what is imported for type checking only."""
    waiting = {name: own_imports(path) - {name} for name, path in files().items()}
    # a package's __init__ gathers its modules, which is no cycle as long as they spell out `base`
    for name in waiting:
        waiting[name] -= {other for other in waiting[name] if other == top(name)}
    while ready := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        for name in ready:
            del waiting[name]
    assert not waiting, f"cycle among {sorted(waiting)}"


def test_no_two_packages_need_each_other() -> None:
    waiting: dict[str, set[str]] = {}
    for name, path in files().items():
        waiting.setdefault(top(name), set()).update(top(other) for other in own_imports(path))
    waiting = {name: needs - {name} for name, needs in waiting.items()}
    while ready := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        for name in ready:
            del waiting[name]
    assert not waiting, f"cycle among {sorted(waiting)}"


def test_the_house_has_few_rooms() -> None:
    loose = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__", "errors"}
    assert len(loose) <= 5, sorted(loose)
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert len(rooms) <= 23, sorted(rooms)


def test_the_pipeline_and_below_know_nothing_about_files_and_terminals() -> None:
    for name, path in files().items():
        if LEVEL.get(top(name), 99) <= LEVEL["pipelines"]:
            outside = OUTSIDE & {top(i) for i in imported(path)} - OPENCV.get(name, set())
            assert not outside, f"{name} imports {outside}"


def test_only_backbones_know_a_model_family() -> None:
    """The pipeline names its transformer's class for diffusers' loader, and does no more with it.
    What is made of parts of a family is made above the engine."""
    family = re.compile(r"transformer_wan|\bWan(Transformer|Attention|Attn|Rotary|Time)")
    for name, path in files().items():
        if top(name) != "backbones" and name != "pipelines.causal_wan":
            users = [i for i in imported(path) if i.startswith("diffusers") and family.search(i)]
            assert not users, f"{name} imports {users}, which is for backbones/"
        if LEVEL.get(top(name), 99) <= LEVEL["engine"] and top(name) != "backbones":
            known = {"backbones.base", "backbones.meter"}
            used = {i for i in own_imports(path) if top(i) == "backbones"} - known
            assert not used, f"{name} imports {used}: the engine works with any `Backbone`"


def test_the_walk_sees_a_model_family() -> None:
    """The test of the test: it is there to be found."""
    names = imported(SOURCE / "backbones" / "wan.py")
    assert any("transformer_wan" in name for name in names)
    assert "engine.state" in {n for n, p in files().items() if "backbones.base" in own_imports(p)}


def test_only_the_server_knows_web_frameworks() -> None:
    for name, path in files().items():
        if top(name) != "server" and name not in ("study.app", "cli.serve"):
            found = WEB & {top(i) for i in imported(path)}
            assert not found, f"{name} imports {found}"
    # which is an extra: without it, the commands that do not serve still start
    for command in ("serve", "study", "listening"):
        assert not {top(i) for i in imported_at_once(SOURCE / "cli" / f"{command}.py")} & WEB


def test_only_evaluation_knows_what_reports_are_made_with() -> None:
    """They are an extra: without it, everything but its two commands works."""
    for name, path in files().items():
        if top(name) != "evaluation":
            found = REPORTS & {top(i) for i in imported(path)}
            assert not found, f"{name} imports {found}"
            found = {other for other in imported_at_once(path) if "stillframe.evaluation" in other}
            assert not found, f"{name} imports {found} when it is imported"


def test_only_a_batch_knows_clusters_and_stores() -> None:
    """And imports neither before it is asked for workers or an address: Ray is an extra."""
    known = {"ray": "jobs.batch.on_ray", "fsspec": "jobs.batch.stores"}
    for name, path in files().items():
        found = {top(i) for i in imported(path)} & set(known)
        assert found <= {package for package, home in known.items() if home == name}, name
        assert not {top(i) for i in imported_at_once(path)} & set(known), name


def test_only_a_group_knows_how_processes_reach_each_other() -> None:
    """And only what starts or is such processes knows of a group: the engine sees a `Backbone`."""
    for name, path in files().items():
        if name != "backbones.parallel.group":
            found = {other for other in imported(path) if other.startswith("torch.distributed")}
            assert not found, f"{name} imports {found}"
        if not name.startswith(("backbones.parallel", "jobs.parallel", "cli.parallel")):
            users = {other for other in own_imports(path) if other.startswith("backbones.parallel")}
            assert not users, f"{name} imports {users}"


def test_the_package_does_not_know_its_training_or_tests() -> None:
    for name, path in files().items():
        heads = {top(i) for i in imported(path)} - OPENCV.get(name, set())
        assert not heads & {"training", "tests", "cv2", "pytest"}, f"{name} imports {heads}"


def test_the_walk_sees_what_it_should(tmp_path: Path) -> None:
    """The test of the test: the usual hiding places."""
    path = tmp_path / "hidden.py"
    path.write_text(
        "def f():\n    import stillframe.pipelines as p\n"
        "if TYPE_CHECKING:\n    from stillframe.methods.base import Method\n"
        "try:\n    from stillframe import engine, Recovery\nexcept ImportError: pass\n"
    )
    assert own_imports(path) == {"pipelines", "methods.base", "engine", "Recovery"}


# public names


def test_public_names_are_sorted_and_there() -> None:
    names = stillframe.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(stillframe, name) is not None
    public = {n for n, v in vars(stillframe).items() if n[0] != "_" and not is_module(v)}
    assert public - {"annotations"} == {n for n in names if not is_module(getattr(stillframe, n))}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stillframe.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_are_there() -> None:
    """The imports written for them, and what a name gives when it is used."""
    statements = ast.walk(ast.parse((SOURCE / "__init__.py").read_text()))
    written = {
        alias.name: node.module
        for node in statements
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert set(written) == set(stillframe.__all__)
    for name, home in written.items():
        assert getattr(stillframe, name) is getattr(importlib.import_module(home), name)


def is_module(value: object) -> bool:
    return isinstance(value, type(sys))


@pytest.mark.parametrize("name", sorted(set(files()) - {"__main__"}))
def test_every_module_says_what_is_public(name: str) -> None:
    module = importlib.import_module(f"stillframe.{name}")
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.{public} is announced but missing"


def test_modules_are_found_as_the_package_finds_them() -> None:
    walked = {m.name for m in pkgutil.walk_packages([str(SOURCE)])}
    assert {top(name) for name in files()} <= {top(name) for name in walked} | {"models"}


# importing does nothing

PROBE = """
import importlib, json, os, pathlib, sys
# libraries may print, cache and configure as they like; they come first
import accelerate, av, diffusers, fastapi, numpy, rich, torch, transformers, typer, uvicorn
import uvicorn.protocols.websockets.websockets_sansio_impl
import jinja2, matplotlib.backends.backend_svg, matplotlib.figure, scipy.stats
from diffusers import AutoencoderKLWan, DiffusionPipeline, WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan import pipeline_wan
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel
sys.stdout.flush(), sys.stderr.flush()
here = pathlib.Path.cwd()
state = lambda: (dict(os.environ), sorted(map(str, here.rglob("*"))),
                 int(torch.get_rng_state().sum()), torch.get_num_threads(),
                 torch.get_default_dtype(), torch.is_grad_enabled())
before = state()
print("MARK", flush=True), print("MARK", file=sys.stderr, flush=True)
for name in {modules}:
    importlib.import_module(name)
print("MARK", flush=True), print("MARK", file=sys.stderr, flush=True)
print(json.dumps([a == b for a, b in zip(before, state())]))
"""


def test_importing_prints_nothing_sets_nothing_and_creates_nothing(tmp_path: Path) -> None:
    modules = ["stillframe", *(f"stillframe.{name}" for name in files() if name != "__main__")]
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.replace("{modules}", repr(modules))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stream in (done.stdout, done.stderr):
        assert stream.split("MARK\n")[1] == ""
    unchanged = json.loads(done.stdout.splitlines()[-1])
    assert all(unchanged), unchanged
