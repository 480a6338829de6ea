"""Examples run as they stand, and what they print is so."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from stillframe.controls.base import _REGISTRY

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs an example in a folder of its own; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_file_is_edited(printed: Any, tmp_path: Path) -> None:
    out = printed("edit_a_file.py")
    assert "21 frames" in out
    for name in ("edited.mp4", "map.mp4"):
        with av.open(str(tmp_path / name)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 21


def test_frames_are_streamed(printed: Any) -> None:
    out = printed("stream_frames.py")
    assert "34 frames in, 34 frames out" in out
    # the prompt that came on the way makes its block anew only where something changes
    assert re.findall(r"block (\d):", out) == ["0", "1", "2"]


def test_masks_are_used_again_and_a_region_is_edited_alone(printed: Any) -> None:
    out = printed("masks_and_regions.py")
    assert "the same patches computed: True" in out
    inside, beyond = map(int, re.findall(r"(\d+) (?:levels|beyond)", out))
    assert inside > 3 * beyond


def test_a_control_of_ones_own_adds_its_share(
    printed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # for this test alone: other tests go through all controls that there are
    monkeypatch.setattr(_REGISTRY, "_kinds", dict(_REGISTRY._kinds))
    without, with_it = printed("own_control.py").strip().splitlines()
    assert without.endswith("100%, 0%")
    assert with_it.endswith("100%, 30%")


def test_the_notebook_shows_source_edit_and_map(tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "source_edit_map.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert not any(c.get("outputs") for c in notebook["cells"]), "it is kept without outputs"
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell, names)
    last = ast.parse(cells[-1]).body[-1]
    assert isinstance(last, ast.Expr), "a notebook shows what its last line is"
    shown = np.asarray(eval(ast.unparse(last), names))
    height, width = names["clip"].shape[1:3]
    assert shown.shape == (3 * height, 3 * width, 3)
    source, edit, drawn = np.split(shown[height : 2 * height].astype(int), 3, 1)
    assert (source == names["clip"][16]).all()
    assert abs(edit - source).mean() > 5
    # grey: reused
    assert (np.ptp(drawn, axis=2) == 0).mean() > 0.3


def test_every_example_is_listed_and_tested() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tests = [Path(__file__), Path(__file__).with_name("test_hooks.py")]
    tested = "".join(test.read_text(encoding="utf-8") for test in tests)
    for path in [*SCRIPTS, *EXAMPLES.glob("*.ipynb")]:
        assert f"`{path.name}`" in page
        assert f'"{path.name}"' in tested


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
def test_the_notebook_runs_in_jupyter(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "source_edit_map.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3").execute(cwd=tmp_path)
    (shown,) = notebook.cells[-1].outputs
    assert "image/png" in shown.data
