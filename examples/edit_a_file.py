"""Edit a file: what changes is computed, and a second file shows which patches those were.

    python examples/edit_a_file.py in.mp4 out.mp4 --prompt "oil painting"

Without file names it edits a clip that it draws, in a few seconds on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np

from stillframe import EditConfig, edit_file, load_pipeline


def draw_clip(path: Path, frames: int = 21, height: int = 96, width: int = 160) -> Path:
    """Write a still picture before which a square moves, 25 frames a second."""
    rng = np.random.default_rng(0)
    still = rng.integers(40, 200, (height // 16, width // 16, 3), dtype=np.uint8)
    still = still.repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = still.copy()
            picture[32:64, 4 * t : 4 * t + 32] = (220, 60, 40)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def main() -> None:
    """Edit a file, and print what was computed of it."""
    parser = argparse.ArgumentParser(description="Edit a video file.")
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("target", type=Path, nargs="?", default=Path("edited.mp4"))
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--model", default="tiny", help="a name, a folder or a hub id")
    options = parser.parse_args()
    source = options.source or draw_clip(Path("drawn.mp4"))

    config = EditConfig.from_options({"tolerance": 3, "gop": 10, "seed": 1})
    report = edit_file(
        load_pipeline(options.model),
        source,
        options.target,
        prompt=options.prompt,
        config=config,
        map_path=options.target.with_name("map.mp4"),
    )
    share = report.kept_share
    print(f"{options.target}: {report.frames_out} frames, {share:.0%} of the patches computed")


if __name__ == "__main__":
    main()
