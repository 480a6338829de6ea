"""What a stream is asked for beyond its method: whole blocks, refresh, cuts, regions, masks, a rate
to hold, and a guard of quality."""

from stillframe.controls.base import control_kinds, register
from stillframe.controls.codec import Agreement, CodecDetector, MotionMap
from stillframe.controls.cuts import Cuts, GivenCuts
from stillframe.controls.from_options import build
from stillframe.controls.gop import Gop
from stillframe.controls.guard import Guard
from stillframe.controls.mask_video import FrameClock, MaskVideo
from stillframe.controls.masks import GivenMasks, MaskHeader, MaskRecorder
from stillframe.controls.outcome import Happened
from stillframe.controls.rate import Rate
from stillframe.controls.refresh import Refresh
from stillframe.controls.region import Region
from stillframe.controls.shapes import Box, Painting
from stillframe.controls.stream import Control, StreamControl
from stillframe.controls.survey import Survey
from stillframe.controls.trace import RateTrace, Timing
from stillframe.controls.twopass import Forecast

__all__ = [
    "Agreement",
    "Box",
    "CodecDetector",
    "Control",
    "Cuts",
    "Forecast",
    "FrameClock",
    "GivenCuts",
    "GivenMasks",
    "Gop",
    "Guard",
    "Happened",
    "MaskHeader",
    "MaskRecorder",
    "MaskVideo",
    "MotionMap",
    "Painting",
    "Rate",
    "RateTrace",
    "Refresh",
    "Region",
    "StreamControl",
    "Survey",
    "Timing",
    "build",
    "control_kinds",
    "register",
]
