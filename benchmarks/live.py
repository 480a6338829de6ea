"""Live editing measured through its session API: latency, still scenes, sessions on one GPU.

    python -m benchmarks.live latency CLIP --seconds 600 --threads 2 --cores 2 --out latency.json
    python -m benchmarks.live still CLIP --out still.json
    python -m benchmarks.live sessions CLIP --seconds 60 --out sessions.json

``latency`` and ``still`` use the bundled model at 240x144 on the CPU, ``sessions`` random 1.3B
weights at 832x480 on a GPU, with the masks that the bundled model's autoencoder makes of the clip.
The last line is JSON. Clips are read with PyAV, or are uint8 arrays (T, H, W, 3) in an .npy file,
for machines without PyAV (``array CLIP --out FILE.npy`` makes one). It does not measure pictures
and sockets, which are the server's share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import say
from stillframe.live import LiveSession, SystemClock, Worker
from stillframe.loading.host import keep_freed_memory
from stillframe.loading.load import load_pipeline
from stillframe.loading.random_model import random_pipeline
from stillframe.methods import Method, Selector
from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = ["main"]

Pixels = NDArray[np.uint8]
_SIGMAS = (0.769, 0.729, 0.625)
_BLOCKS = 14
_INPUTS = ("8", "5", "15", "30", "irregular")


def read_clip(path: Path, width: int, height: int, most: int = 200) -> Pixels:
    """Frames of a clip, (T, H, W, 3); of an array those of another size are refused."""
    if path.suffix == ".npy":
        frames = np.asarray(np.load(path)[:most], np.uint8)
        if frames.shape[1:] != (height, width, 3):
            raise SystemExit(f"{path} holds {frames.shape}, and {height}x{width} is wanted")
        return frames
    import av

    with av.open(str(path)) as container:
        pictures = []
        for frame in container.decode(video=0):
            pictures.append(frame.reformat(width, height, "rgb24").to_ndarray())
            if len(pictures) == most:
                break
    return np.stack(pictures)


def there_and_back(frames: Pixels) -> Iterator[Pixels]:
    """A clip without an end, and without a jump."""
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    while True:
        for number in order:
            yield frames[number]


def pauses(kind: str, seed: int = 3) -> Iterator[float]:
    """Seconds between frames: a rate, or bursts and gaps of 2 to 60 frames a second."""
    if kind != "irregular":
        while True:
            yield 1 / float(kind)
    rng = random.Random(seed)
    while True:
        pace = rng.choice([2, 10, 30, 60])
        for _ in range(rng.randint(1, 20)):
            yield rng.uniform(0.5, 1.5) / pace


class Listener(threading.Thread):
    """Reads a session to its end; notes when each frame came out, and its latency in seconds."""

    def __init__(self, session: LiveSession) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.notes: list[tuple[float, float]] = []
        self.start()

    def run(self) -> None:
        """The thread's work."""
        clock = SystemClock()
        for frame in self.session:
            self.notes.append((clock.now(), clock.now() - frame.arrived))


def feed(
    sessions: Sequence[LiveSession],
    clip: Pixels,
    kind: str,
    seconds: float,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Push a clip in real time into all sessions; returns when it began."""
    begun = due = time.monotonic()
    for frame, pause in zip(there_and_back(clip), pauses(kind), strict=False):
        due += pause
        if due - begun > seconds or stop():
            return begun
        time.sleep(max(due - time.monotonic(), 0))
        for session in sessions:
            session.push(frame, due)
    return begun


def figures(values: Sequence[float]) -> dict[str, float | int]:
    """Median and 95th percentile, in seconds."""
    if not values:
        return {"frames": 0}
    p50, p95 = np.percentile(values, [50, 95])
    return {"frames": len(values), "p50": round(float(p50), 4), "p95": round(float(p95), 4)}


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """Latency over each minute under policy "latest", by kind of input."""
    pipe, clip = load_pipeline("tiny", device="cpu"), read_clip(options.clip, 240, 144)
    rows = []
    for kind in options.inputs.split(","):
        with LiveSession(pipe, "oil painting", height=144, width=240) as session:
            listener = Listener(session)
            begun = feed([session], clip, kind, options.seconds)
            dropped = session.dropped
        listener.join()
        step = min(60.0, options.seconds / 4)
        # the first block waits for the model to warm up
        told = [(at - begun, late) for at, late in listener.notes if at - begun > step / 4]
        parts = [
            figures([late for at, late in told if start <= at < start + step])
            for start in np.arange(0, options.seconds, step)
        ]
        medians = [part["p50"] for part in parts if "p50" in part]
        row = {"input": kind, **figures([late for _, late in told]), "dropped": dropped,
               "fps": round(len(told) / (options.seconds - step / 4), 2), "part_seconds": step,
               "parts": parts, "last_to_first": round(medians[-1] / medians[0], 3)}  # fmt: skip
        rows.append(row)
        say(f"{kind:>9}: p50 {row['p50']:.2f} s, p95 {row['p95']:.2f} s, last part / first "
            f"{row['last_to_first']}, {row['fps']} frames a second out")  # fmt: skip
    return {"what": "latency", "seconds": options.seconds, "rows": rows}


def camera_noise(picture: Pixels, frames: int, sigma: float) -> Pixels:
    """A still picture before a camera with noise of so many grey levels, (T, H, W, 3)."""
    noise = np.random.default_rng(0).normal(0, sigma, (frames, *picture.shape))
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


def cpu_seconds(pipe: CausalWanPipeline, frames: Iterator[Pixels]) -> list[float]:
    """CPU seconds of each block of a session that is given frames as fast as it takes them.

    Counts all of the process: frames are taken in and read here, too.
    """
    worker, spent = Worker(), []
    session = LiveSession(pipe, "oil painting", worker=worker, height=144, width=240)
    for block in range(_BLOCKS):
        begun = time.process_time()
        for number in range(session.block_frames):
            session.push(next(frames), block * 100.0 + number)
        while worker.step():
            while session.unread:
                session.get(0)
        spent.append(time.process_time() - begun)
    session.close()
    return spent


def still(options: argparse.Namespace) -> dict[str, Any]:
    """CPU time of a still scene over that of a moving one, block by block at the same rate."""
    pipe = load_pipeline("tiny", device="cpu")
    clip = read_clip(options.clip, 240, 144)
    scenes = {"moving": clip, "identical": clip[:1]}
    for sigma in (1.0, 2.0):
        scenes[f"noise {sigma:g}"] = camera_noise(clip[0], 60, sigma)
    rows: dict[str, float] = {}
    for name, frames in scenes.items():
        spent = cpu_seconds(pipe, there_and_back(frames))
        # the first blocks of a stream are whole and fill its memory, in every scene
        rows[name] = float(np.median(spent[4:]))
        say(f"{name:<32} {rows[name]:.3f} CPU s a block, {rows[name] / rows['moving']:.1%}")
    shares = {name: round(spent / rows["moving"], 4) for name, spent in rows.items()}
    return {"what": "still", "cpu_seconds_a_block": rows, "shares": shares}


@dataclass(frozen=True)
class Replay(Method):
    """Keep what is in given masks, one a block, again and again: random weights see no motion."""

    name: ClassVar[str] = "replay"
    summary: ClassVar[str] = "keep what given masks say"

    masks: tuple[Tensor, ...] = field(default=(), compare=False)

    def selector(self) -> Selector:
        """Masks in turn, (1, S, h, w) bool."""
        turn = itertools.cycle(self.masks)
        return lambda source: next(turn).to(source.tokens.device)


def masks_of(clip: Pixels) -> tuple[Tensor, ...]:
    """Keep masks of a clip, from the latents of the bundled autoencoder; whole blocks left out."""
    pipe, worker = load_pipeline("tiny", device="cuda"), Worker()
    frames = there_and_back(clip)
    with LiveSession(pipe, "oil painting", worker=worker, height=480, width=832) as session:
        for number in range(12 * session.block_frames):
            session.push(next(frames), float(number))
            while worker.step():
                while session.unread:
                    session.get(0)
        blocks = session.telemetry.blocks[1:]
        return tuple(torch.from_numpy(block.keep).unsqueeze(0) for block in blocks)


def open_sessions(
    pipe: CausalWanPipeline, worker: Worker, count: int, method: Method
) -> list[LiveSession]:
    """Sessions at 832x480 with random prompts."""
    config = pipe.transformer.config
    shape = 1, pipe.config.text_length, config.text_dim
    embeds = torch.randn(shape, device=pipe.compute_device, dtype=pipe.transformer.dtype)
    return [
        LiveSession(pipe, prompt_embeds=embeds, worker=worker, method=method, height=480,
                    width=832, sigmas=_SIGMAS, max_wait=2.0)
        for _ in range(count)
    ]  # fmt: skip


def of_sessions(
    pipe: CausalWanPipeline, clip: Pixels, method: Method, count: int, fps: str, seconds: float
) -> dict[str, Any]:
    """Frames a second and latency of so many sessions at once."""
    with Worker() as worker:
        sessions = open_sessions(pipe, worker, count, method)
        listeners = [Listener(session) for session in sessions]
        warm = time.monotonic() + max(seconds / 4, 5.0)
        feed(sessions, clip, fps, seconds + max(seconds / 4, 5.0))
        kept = [float(np.mean([b.kept_share for b in s.telemetry.blocks])) for s in sessions]
        for session in sessions:
            session.close()
    for listener in listeners:
        listener.join()
    told = [[late for at, late in listener.notes if at > warm] for listener in listeners]
    rates = [len(each) / seconds for each in told]
    return {
        "sessions": count, "input_fps": float(fps), "fps": [round(rate, 2) for rate in rates],
        "kept_share": round(float(np.mean(kept)), 3), **figures([x for each in told for x in each]),
    }  # fmt: skip


def sessions(options: argparse.Namespace) -> dict[str, Any]:
    """One session as fast as it goes, then more and more of 16 frames a second."""
    pipe, clip = random_pipeline("1.3b", "cuda", torch.bfloat16), read_clip(options.clip, 832, 480)
    method = Replay(masks=masks_of(clip))
    rows = [of_sessions(pipe, clip, method, 1, "120", options.seconds)]
    say(json.dumps(rows[-1]))
    holds = 0
    for count in range(1, options.most + 1):
        rows.append(of_sessions(pipe, clip, method, count, "16", options.seconds))
        say(json.dumps(rows[-1]))
        if min(rows[-1]["fps"]) < 0.95 * 16:
            break
        holds = count
    return {"what": "sessions", "device": torch.cuda.get_device_name(), "holds": holds,
            "peak_bytes": torch.cuda.max_memory_allocated(), "rows": rows}  # fmt: skip


def array(options: argparse.Namespace) -> dict[str, Any]:
    """Write a clip as an array, for machines that cannot read video."""
    frames = read_clip(options.clip, options.width, options.height)
    np.save(options.out, frames)
    return {"what": "array", "shape": frames.shape}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Live editing, measured.")
    parser.add_argument("part", choices=_PARTS)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--inputs", default=",".join(_INPUTS), help="for latency")
    parser.add_argument("--most", type=int, default=12, help="sessions to try")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--cores", type=int, help="pin the process to so many")
    parser.add_argument("--width", type=int, default=832, help="for array")
    parser.add_argument("--height", type=int, default=480, help="for array")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


_PARTS = {"latency": latency, "still": still, "sessions": sessions, "array": array}


def main() -> None:
    """Run one of them."""
    options = _options()
    if options.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.part in ("latency", "still"):
        keep_freed_memory()
    result = _PARTS[options.part](options)
    text = json.dumps(result)
    if options.out is not None and options.part != "array":
        options.out.write_text(text + "\n")
    say(text)


if __name__ == "__main__":
    main()
