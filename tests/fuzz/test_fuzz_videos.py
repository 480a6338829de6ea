"""Damaged videos are read as far as they go, or refused in one sentence."""

from __future__ import annotations

import gc
import warnings
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from tests.fuzz.damage import Rng, damaged, generator, held, refused
from tests.video_samples import gradient, make_video

from stillframe.errors import StillframeError
from stillframe.video import Source, VideoReader, VideoWriter

CASES = 16
# far above what the samples have, and soon too much for damage
MAX_PIXELS = 2**20
KINDS = {
    "h264.mp4": ("libx264", "yuv420p", "aac"),
    "mpeg4.mp4": ("mpeg4", "yuv420p", None),
    "ffv1.mkv": ("ffv1", "bgr0", "libopus"),
    "vp9.webm": ("libvpx-vp9", "yuv420p", None),
    "h264.ts": ("libx264", "yuv420p", "mp2"),
    "mpeg2.ts": ("mpeg2video", "yuv420p", None),
    "mpeg4.avi": ("mpeg4", "yuv420p", "mp2"),
    "png.mov": ("png", "rgb24", None),
    "flv.flv": ("flv", "yuv420p", None),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", None),
    "mjpeg.mkv": ("mjpeg", "yuvj420p", None),
    "a.gif": ("gif", "rgb8", None),
    "a.y4m": ("wrapped_avframe", "yuv420p", None),
}


@pytest.fixture(name="samples", scope="session")
def samples_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good files by name."""
    folder = tmp_path_factory.mktemp("samples")
    frames = [gradient(index) for index in range(9)]
    for name, (codec, form, sound) in KINDS.items():
        make_video(folder / name, frames, codec=codec, pixel_format=form, sound=sound,
                   sound_seconds=0.3 if sound else 0)  # fmt: skip
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(folder / "a.webp", save_all=True, append_images=pictures[1:])
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_and_write(path: Path, rng: Rng) -> None:
    """What an edit does with a file, the model left out."""
    out = path.with_name("out" + str(rng.choice([".mp4", ".mkv", ".webm", ".avi"])))
    try:
        with VideoReader(Source.of(path, max_pixels=MAX_PIXELS)) as reader:
            assert reader.width * reader.height <= MAX_PIXELS
            assert 0 < reader.fps < 1e6
            with VideoWriter(
                out, 64, 48, reader.time_base, reader.fps,
                codec="mpeg4" if out.suffix != ".webm" else None,
                sample_aspect_ratio=reader.sample_aspect_ratio, audio_from=reader,
            ) as writer:  # fmt: skip
                for frame in islice(reader, 40):
                    writer.write(frame.pixels[:48, :64].repeat(3, 0).repeat(4, 1)[:48, :64],
                                 frame.pts, frame.duration)  # fmt: skip
        assert isinstance(reader.damage, str | None)
        with VideoReader(out) as written:
            next(iter(written))
    except StillframeError as error:
        refused(error)
    except ValueError as error:
        refused(error)


@pytest.mark.parametrize("name", [*KINDS, "a.webp"])
def test_damaged_videos(
    name: str, samples: dict[str, bytes], fuzz_scale: int, tmp_path: Path
) -> None:
    for number in range(CASES * fuzz_scale):
        rng = generator(f"video {name}", number)
        others = [*samples.values()]
        data = damaged(samples[name], others[int(rng.integers(len(others)))], rng)
        path = tmp_path / f"case{Path(name).suffix}"
        path.write_bytes(data)
        with held(f"{name} {number}", tmp_path, 20), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            read_and_write(path, rng)
    gc.collect()


def test_the_good_ones_are_read(samples: dict[str, bytes], tmp_path: Path) -> None:
    """Otherwise everything above could be refused for another reason."""
    for name, data in samples.items():
        path = tmp_path / name
        path.write_bytes(data)
        with VideoReader(Source.of(path, max_pixels=MAX_PIXELS)) as reader:
            assert len(list(reader)) == 9, name
            assert reader.damage is None, name
