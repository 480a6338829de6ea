"""What it takes to notice that weights have changed, against the blocks that it is asked before.

Milliseconds of the question alone, of the part of it that reads no weights, and of a whole block,
frames to frames, of the bundled model, or of random weights on a GPU; the share kept is given.

Run as ``python -m benchmarks.watched_weights [--shape 1.3b] [--height 240] [--kept .25]``.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import torch

from benchmarks import say
from stillframe.jobs.bench import run_bench
from stillframe.kernels.weights import WeightWatch
from stillframe.loading.load import load_pipeline
from stillframe.loading.random_model import SHAPES, random_pipeline


def main() -> None:
    """Print both, and JSON."""
    parser = argparse.ArgumentParser(description="What watching weights costs.")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights, on a GPU")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--kept", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    pipe: Any
    if options.shape is None:
        pipe = load_pipeline("tiny")
    else:
        pipe = random_pipeline(options.shape, "cuda", torch.bfloat16)
    watch = WeightWatch()
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(20 * options.repeats):
        started = time.perf_counter()
        watch.revision(pipe.transformer, read=turn % 2 == 0)  # on a GPU reading waits
        times[turn % 2 == 0].append(1e3 * (time.perf_counter() - started))
    given = {name: getattr(options, name) for name in ("height", "width", "repeats")}
    block = run_bench(pipe, shares=(options.kept,), pixels=True, **given).rows[0].block_ms
    watched, known = (median(times[read][1:]) for read in (True, False))
    say(f"{watched:.2f} ms of a block's {block:.1f} ms: {watched / block:.2%}")
    say(f"{known:.2f} ms without reading: {known / block:.2%}")
    threads = torch.get_num_threads()
    found = {"watched_ms": watched, "known_ms": known, "block_ms": block, "threads": threads}
    say(json.dumps({"what": "watched weights", **vars(options), **found}))


if __name__ == "__main__":
    main()
