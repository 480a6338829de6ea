"""What a model's kernels take to compile, for a card that need not be there.

Lists every kernel that editing launches, and in how many specialisations: in its first block, in
the second one, of which a part is computed, and in later ones. Each is compiled from nothing with
the compiler that a GPU's machine has, Triton and its ptxas, whose time does not depend on a GPU.
Then it says after how long kernels would be there on a machine with more cores: they are taken in
the order in which they are found, by the next core that is free. ``--stages`` says what of it takes
how long, ``--ptxas`` what registers and spills there are.

    python -m benchmarks.compiling                      # self-forcing (1.3B), 832x480, an H100
    python -m benchmarks.compiling --vae full --cores 16 8
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import say
from stillframe.kernels.compiling import Compiled, compile_all, cores
from stillframe.kernels.rehearsal import Card, Launch
from stillframe.loading.ahead import rehearse, unread_pipeline
from stillframe.loading.assemble import Task
from stillframe.loading.load import find_source

_H100 = Card((9, 0), 132, 85 * 10**9)
_WHEN = "first block", "second block", "later"


class Found(NamedTuple):
    """A kernel that is launched.

    Attributes:
        when: its place in `_WHEN`.
        second: of a processor that the process had taken when it was found.
    """

    when: int
    second: float


def compiled(options: argparse.Namespace) -> tuple[list[Compiled], dict[Launch, Found]]:
    """All kernels, in the order in which they were found."""
    width, height = map(int, options.size.split("x"))
    source, task = find_source(options.model, options.vae), Task(height, width)
    found: dict[Launch, Found] = {}

    def find(note: Any) -> None:
        block = 0

        def begin(number: int) -> None:
            nonlocal block
            block = number

        def noted(launch: Launch) -> None:
            found[launch] = Found(min(block, 2), time.process_time())
            note(launch)

        pipe = unread_pipeline(source, getattr(torch, options.dtype), task)
        rehearse(pipe, task, _H100, noted, begin)

    made = compile_all(find, _H100, lambda *_: None, options.processes)
    return made, found


def there_after(jobs: Sequence[tuple[float, float]], count: int) -> float:
    """Seconds until all of some jobs are done, by so many workers.

    Args:
        jobs: when each can begin, rising, and how long it takes.
        count: of workers.
    """
    free, last = [0.0] * count, 0.0
    for begins, takes in jobs:
        done = max(heapq.heappop(free), begins) + takes
        heapq.heappush(free, done)
        last = max(last, done)
    return last


def registers(one: Compiled) -> tuple[int, int, int]:
    """Registers of a thread, bytes that they spill, and lines of PTX."""
    from triton.knobs import nvidia
    from triton.runtime.cache import get_cache_manager

    (ptx,) = Path(get_cache_manager(one.place).cache_dir).glob("*.ptx")
    command = [nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(ptx), "-o", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    numbers = [re.search(p, told) for p in (r"Used (\d+) registers", r"(\d+) bytes spill stores")]
    used, spilt = (0 if found is None else int(found[1]) for found in numbers)
    return used, spilt, ptx.read_text().count("\n")


def table(made: list[Compiled], found: dict[Launch, Found]) -> None:
    """Kernels, those that take longest first."""
    by_name: dict[str, list[Compiled]] = defaultdict(list)
    for one in made:
        by_name[one.launch.kernel].append(one)
    say(f"{'kernel':<34}" + "".join(f"{x:>14}" for x in _WHEN) + f"{'seconds':>9}{'longest':>9}")
    for name, ones in sorted(by_name.items(), key=lambda x: -sum(one.seconds for one in x[1])):
        counts = [sum(found[one.launch].when == when for one in ones) for when in range(3)]
        seconds = [one.seconds for one in ones]
        short = name.removeprefix("stillframe.kernels.")
        numbers = "".join(f"{count:>14}" for count in counts)
        say(f"{short:<34}{numbers}{sum(seconds):>9.1f}{max(seconds):>9.2f}")
    counts = [sum(found[one.launch].when == when for one in made) for when in range(3)]
    total = sum(one.seconds for one in made)
    say(f"{'all':<34}" + "".join(f"{count:>14}" for count in counts) + f"{total:>9.1f}")


def _show_registers(made: list[Compiled]) -> None:
    for one in made:
        used, spilt, lines = registers(one)
        constants = " ".join(str(value) for value in json.loads(one.launch.data)["constant_vals"])
        say(
            f"{one.launch.kernel} {one.seconds:.2f} s: {used} registers, {spilt} bytes spilt, "
            f"{lines} lines of PTX; {constants}"
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="What kernels take to compile.")
    parser.add_argument("--model", default="self-forcing")
    parser.add_argument("--vae", choices=("tiny", "full"), default="tiny")
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--processes", type=int, default=cores(), help="that compile at once")
    parser.add_argument("--cores", type=int, nargs="+", default=[16, 8], help="to predict for")
    parser.add_argument("--ptxas", action="store_true", help="print registers of every kernel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        made, found = compiled(options)
        table(made, found)
        if options.ptxas:
            _show_registers(made)
    ready = {}
    for count in options.cores:
        ready[count] = [
            there_after([(found[x.launch].second, x.seconds) for x in made if keep(x)], count)
            for keep in (lambda x: not found[x.launch].when, lambda x: True)
        ]
        say(
            f"on {count} cores: those of the first block are there {ready[count][0]:.1f} s after "
            f"the process began, all after {ready[count][1]:.1f} s"
        )
    result = {
        "what": "compiling",
        **vars(options),
        "kernels": len(made),
        "first_block": sum(not found[x.launch].when for x in made),
        "seconds": sum(x.seconds for x in made),
        "first_block_s": sum(x.seconds for x in made if not found[x.launch].when),
        "longest_s": max(x.seconds for x in made),
        "found_s": max(x.second for x in found.values()),
        "ready_s": ready,
    }
    say(json.dumps(result))


if __name__ == "__main__":
    main()
