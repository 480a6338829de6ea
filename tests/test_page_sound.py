"""Sound in what the page records: as late as the picture is, in a real browser."""

from __future__ import annotations

import time
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.chromium import CHROMIUM, Browser
from tests.page_fixtures import browser_fixture  # noqa: F401
from tests.server_fixtures import serving, wait_until

from stillframe import load_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium"),
]

RATE, FPS, SECONDS = 48_000, 15, 6
# when it is bright and loud, in seconds of the file
FLASHES = ((2.0, 2.8), (4.0, 4.8))
SHOWN = "Number(document.getElementById('result').dataset.frames ?? 0)"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is dark and silent, and at times bright and loud."""
    path = tmp_path_factory.mktemp("clip") / "flashes.webm"
    lit = [any(a <= n / FPS < b for a, b in FLASHES) for n in range(SECONDS * FPS)]
    times = np.arange(SECONDS * RATE) / RATE
    loud = np.any([(a <= times) & (times < b) for a, b in FLASHES], axis=0)
    tone = (0.5 * loud * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libvpx", rate=FPS)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        sound = out.add_stream("libopus", rate=RATE, layout="mono")
        for number, bright in enumerate(lit):
            picture = np.full((96, 160, 3), 220 if bright else 30, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            part = tone[number * RATE // FPS :][: RATE // FPS]
            frame = av.AudioFrame.from_ndarray(part[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE, number * RATE // FPS
            out.mux(sound.encode(frame))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
    return path


def _levels(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(time, brightness) of a recording's frames and (time, loudness) of each 10 ms."""
    with av.open(str(path)) as video:
        light = [(f.time, f.to_ndarray(format="gray").mean()) for f in video.decode(video=0)]
    with av.open(str(path)) as sound:
        heard = []
        for frame in sound.decode(audio=0):
            samples = frame.to_ndarray().astype(float).reshape(-1)
            step = frame.sample_rate // 100 * len(frame.layout.channels)
            begun = float(frame.time or 0)
            for at in range(0, len(samples) - step + 1, step):
                heard.append((begun + at / step / 100, np.abs(samples[at : at + step]).mean()))
    return np.array(light), np.array(heard)


def _rises(levels: NDArray[np.float64]) -> list[tuple[float, float]]:
    """When something goes from low to high: the last time at which it was low, the first not."""
    high = levels[:, 1] > (levels[:, 1].min() + levels[:, 1].max()) / 2
    at = np.flatnonzero(high[1:] & ~high[:-1])
    rises = [(float(levels[k, 0]), float(levels[k + 1, 0])) for k in at]
    return [rise for k, rise in enumerate(rises) if k == 0 or rise[1] > rises[k - 1][1] + 1]


def _off(seen: tuple[float, float], sounded: float) -> float:
    """Seconds by which a sound is too late for its light, negative if it is too early.

    Between two pictures, which are few on a slow machine, nobody knows when it became bright.
    """
    before, after = seen
    return max(sounded - after, 0.0) + min(sounded - before, 0.0)


def test_a_recording_has_the_sound_of_its_file_in_step(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    with serving(load_pipeline("tiny"), height=64, width=96) as server:
        tab = browser.tab(f"http://127.0.0.1:{server.port}/")
        tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        tab.js("document.getElementById('prompt').value = 'photo'")
        tab.click("#sound")
        tab.click("[name=kind][value=file]")
        tab.choose("#file", clip)
        tab.click("#start")
        tab.until(f"{SHOWN} > 48")
        tab.click("#record")
        time.sleep(2.5 * SECONDS)
        tab.click("#record")
        tab.until("!document.getElementById('download').hidden")
        wait_until(lambda: list(tmp_path.glob("stillframe-*.webm")))
        delay = tab.js("Number(document.getElementById('value-latency').dataset.value)")
        tab.close()
    [found] = tmp_path.glob("stillframe-*.webm")
    light, heard = _levels(found)
    seen, sounded = _rises(light), _rises(heard)
    assert len(seen) >= 2
    assert delay > 0.3, "else sound that is not delayed would do"
    # of each flash, how much later its sound is than its light
    steps = [min((_off(rise, s) for _, s in sounded), key=abs) for rise in seen if rise[1] > 4]
    assert steps
    assert np.median(np.abs(steps)) < 0.15, (steps, seen, sounded, delay)
