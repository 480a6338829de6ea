"""Options as data, and what files declare without being run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stillframe.controls import control_kinds
from stillframe.methods import methods
from stillframe.options import Option
from stillframe.recovery import recoveries
from stillframe.registry import catalogue


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        (Option("int", "", least=1, most=8), [1, 8], [0, 9, 10**30, 1.0, True, "1"]),
        (Option("float", "", above=0, most=1), [1, 0.5], [0, -1, 2, float("nan"), False, "x"]),
        (Option("float", ""), [-1e9, 3], [float("inf"), float("nan")]),
        (Option("str", "", choices=("a", "b")), ["a"], ["c", 1, None.__class__]),
        (Option("bool", ""), [True, False], [0, "true"]),
        (Option("path", ""), ["x", Path("x")], [1]),
    ],
)
def test_values_are_of_their_kind_and_within_bounds(
    option: Option, good: list[object], bad: list[object]
) -> None:
    for value in good:
        assert option.checked("--x", value) == value
    for value in bad:
        with pytest.raises(ValueError, match="--x is "):
            option.checked("--x", value)
    assert option.checked("--x", None) is None


@pytest.mark.parametrize(
    ("package", "registered"),
    [
        ("stillframe.methods", methods),
        ("stillframe.recovery", recoveries),
        ("stillframe.controls", control_kinds),
    ],
)
def test_the_catalogue_says_what_importing_would(package: str, registered: object) -> None:
    kinds = registered()  # type: ignore[operator]
    found = catalogue(package)
    own = {name: kind for name, kind in kinds.items() if kind.__module__.startswith("stillframe.")}
    assert set(found) == set(own)
    for name, declared in found.items():
        assert declared.attributes["summary"] == own[name].summary
        assert declared.options == getattr(own[name], "options", {})


def test_the_catalogue_imports_nothing_heavy() -> None:
    code = (
        "import sys; from stillframe.registry import catalogue; "
        "assert catalogue('stillframe.methods') and catalogue('stillframe.controls'); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_are_declared_as_literals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "declaring"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "one.py").write_text(
        "import nothing_of_that_name\n"
        "@register('one')\n"
        "class One:\n"
        "    summary: str = 'first'\n"
        "    made = sorted([2, 1])\n"
        "    options = {'one': Option('int', 'So many.', least=1, live=True)}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    declared = catalogue("declaring")["one"]
    assert declared.attributes["summary"] == "first"
    assert "made" not in declared.attributes
    assert declared.options == {"one": Option("int", "So many.", least=1, live=True)}
    (package / "two.py").write_text(
        "@register('two')\nclass Two:\n    options = {'two': Option('int', '', most=10**6)}\n"
    )
    with pytest.raises(ValueError, match="options of 'two' are no literals"):
        catalogue("declaring")
