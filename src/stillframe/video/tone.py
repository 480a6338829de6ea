"""High dynamic range to standard: pictures with a PQ or HLG curve become what an SDR screen shows.

Reference white, 203 nits, becomes the white of the screen, as ITU-R BT.2408 has it; what is
brighter is compressed into the little that is left. Knows light, not files.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

__all__ = ["ToneMap", "hdr_curve", "to_sdr"]

Light = NDArray[np.float64]

# H.273 transfer characteristics and colour primaries
_PQ, _HLG = 16, 18
_CURVES = {_PQ: "PQ", _HLG: "HLG"}
_BT709 = 1
_WHITE_NITS = 203.0
# of HLG as BT.2100 has it, and of what most PQ is graded for
_PEAK_NITS = 1000.0
# Share of white's PQ value from which on light is compressed.
_KNEE = 0.97
_SDR_GAMMA = 2.4
# BT.2020 to BT.709 for linear light: BT.2087, table 1
_TO_BT709 = np.array(
    [
        [1.6605, -0.5876, -0.0728],
        [-0.1246, 1.1329, -0.0083],
        [-0.0182, -0.1006, 1.1187],
    ]
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])
# 64 values a colour, in the picture that FFmpeg calls a Hald CLUT
_LEVEL = 8


def hdr_curve(frame: av.VideoFrame) -> str | None:
    """The name of the curve if a picture has high dynamic range, PQ or HLG; None otherwise."""
    return _CURVES.get(int(frame.color_trc))


class ToneMap:
    """`to_sdr` for decoded pictures of one size and format, by a table that FFmpeg interpolates.

    Args:
        frame: one of them.
    """

    def __init__(self, frame: av.VideoFrame) -> None:
        self.kind = _kind(frame)
        time_base = Fraction(1)
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=time_base
        )
        deep = self._graph.add("scale", "flags=bilinear+accurate_rnd+full_chroma_int")
        planar = self._graph.add("format", "gbrp16le")
        side = _LEVEL**3
        form: Any = av.VideoFormat("rgb48le")
        table = self._graph.add_buffer(width=side, height=side, format=form, time_base=time_base)
        look_up = self._graph.add("haldclut", "interp=tetrahedral")
        source.link_to(deep)
        deep.link_to(planar)
        planar.link_to(look_up, 0, 0)
        table.link_to(look_up, 0, 1)
        sink = self._graph.add("buffersink")
        look_up.link_to(sink)
        self._graph.configure()
        colours = av.VideoFrame.from_ndarray(
            _table(int(frame.color_trc), int(frame.color_primaries) != _BT709), format="rgb48le"
        )
        colours.pts, colours.time_base = 0, time_base
        table.push(colours)
        table.push(None)
        self._source, self._sink = source, sink
        self._count = 0

    def fits(self, frame: av.VideoFrame) -> bool:
        """Whether a picture is of the same kind."""
        return self.kind == _kind(frame)

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The same picture in SDR, as 16-bit RGB, with no time of its own."""
        times = frame.pts, frame.time_base
        # the table has but one, which all must come after
        frame.pts, frame.time_base = self._count, Fraction(1)
        self._count += 1
        self._source.push(frame)
        frame.pts = times[0]
        if times[1]:
            frame.time_base = times[1]
        mapped: Any = self._sink.pull()
        return mapped


def _kind(frame: av.VideoFrame) -> tuple[Any, ...]:
    curve, primaries = int(frame.color_trc), int(frame.color_primaries)
    return frame.width, frame.height, frame.format.name, curve, primaries, int(frame.colorspace)


@functools.lru_cache(maxsize=4)
def _table(curve: int, is_wide: bool) -> NDArray[np.uint16]:
    steps = _LEVEL**2
    axis = np.linspace(0, 1, steps)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    colours = np.stack([red, green, blue], -1)
    mapped = to_sdr(colours, _CURVES[curve], is_wide=is_wide)
    side = _LEVEL**3
    return np.asarray((mapped * 65535).round().astype(np.uint16)).reshape(side, side, 3)


def to_sdr(colours: Light, curve: str, *, is_wide: bool = True) -> Light:
    """Colours of HDR video as those of SDR video that look like them.

    They become light, in nits (PQ: SMPTE ST 2084; HLG: BT.2100, on a screen of 1000 nits), and that
    BT.709's (BT.2087). The brightest of the three is compressed and takes the others with it, which
    keeps hues; negative light, outside of BT.709, is cut off. BT.1886 makes SDR video of the rest.

    Compression works on PQ values, as in BT.2390, 5.4. With E of the light, W of white and P of
    the peak, E stays up to a knee K, and above it becomes

        K + (W - K) s t / (1 + (s - 1) t),    t = (E - K) / (P - K),    s = (P - K) / (W - K),

    which leaves the knee with slope 1 and takes P to W. BT.2390 has a cubic there, which cannot
    keep its slope above 0 unless its knee is at 1.5 W / P - 0.5: white would become a light grey of
    230 of 255. A late knee keeps white white, at the price of detail in what is brighter.

    Args:
        colours: (..., 3) R'G'B' in [0, 1].
        curve: "PQ" or "HLG".
        is_wide: whether primaries are BT.2020's, not BT.709's.

    Returns:
        (..., 3) R'G'B' in [0, 1].
    """
    light = _pq_light(colours) if curve == "PQ" else _hlg_light(colours)
    if is_wide:
        light = light @ _TO_BT709.T
    brightest = light.max(axis=-1, keepdims=True).clip(1e-6)
    scale = _pq_light(_compress(_pq_value(brightest.clip(0, _PEAK_NITS)))) / brightest
    return np.asarray((light * scale / _WHITE_NITS).clip(0, 1) ** (1 / _SDR_GAMMA))


def _compress(value: Light) -> Light:
    """PQ values up to that of the peak -> up to that of white."""
    white = _pq_value(np.array(_WHITE_NITS))
    peak = _pq_value(np.array(_PEAK_NITS))
    knee = _KNEE * white
    slope = (peak - knee) / (white - knee)
    above = ((value - knee) / (peak - knee)).clip(0)
    curved = knee + (white - knee) * slope * above / (1 + (slope - 1) * above)
    return np.asarray(np.where(value <= knee, value, curved))


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_light(value: Light) -> Light:
    """ST 2084: [0, 1] -> nits."""
    root = np.asarray(value) ** (1 / _M2)
    return 10_000 * ((root - _C1).clip(0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _pq_value(nits: Light) -> Light:
    """ST 2084: nits -> [0, 1]."""
    root = (nits / 10_000) ** _M1
    return np.asarray(((_C1 + _C2 * root) / (1 + _C3 * root)) ** _M2)


def _hlg_light(value: Light) -> Light:
    """BT.2100: inverse OETF and OOTF of a screen of 1000 nits, [0, 1] -> nits."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    luma = (scene @ _BT2020_LUMA)[..., None]
    return np.asarray(_PEAK_NITS * luma**0.2 * scene)
