"""What a stream is asked for beyond its method: whole blocks, refresh, cuts, regions, masks, a rate
to hold, and a guard of quality."""

from stillframe.control.codec import Agreement, CodecDetector, MotionMap
from stillframe.control.cuts import Cuts, GivenCuts
from stillframe.control.film import Film, FrameClock
from stillframe.control.gop import Gop
from stillframe.control.guard import Guard
from stillframe.control.masks import GivenMasks, MaskHeader, MaskRecorder
from stillframe.control.outcome import Happened
from stillframe.control.rate import Rate
from stillframe.control.refresh import Refresh
from stillframe.control.region import Box, Painting, Region
from stillframe.control.stream import Control, StreamControl
from stillframe.control.survey import Survey
from stillframe.control.trace import RateTrace, Timing
from stillframe.control.twopass import Forecast

__all__ = [
    "Agreement",
    "Box",
    "CodecDetector",
    "Control",
    "Cuts",
    "Film",
    "Forecast",
    "FrameClock",
    "GivenCuts",
    "GivenMasks",
    "Gop",
    "Guard",
    "Happened",
    "MaskHeader",
    "MaskRecorder",
    "MotionMap",
    "Painting",
    "Rate",
    "RateTrace",
    "Refresh",
    "Region",
    "StreamControl",
    "Survey",
    "Timing",
]
