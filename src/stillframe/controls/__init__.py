"""What decides about masks beside a method, one file each; `base` says how to add one."""

from stillframe.controls.base import (
    Control,
    ControlledBlock,
    Controls,
    Demands,
    Order,
    RunningControl,
    SourceFacts,
    StreamFacts,
    control_kinds,
    register,
)
from stillframe.controls.codec import Agreement, CodecDetector
from stillframe.controls.cuts import Cuts, GivenCuts
from stillframe.controls.from_options import build
from stillframe.controls.gop import Gop
from stillframe.controls.guard import Guard
from stillframe.controls.mask_video import MaskVideo
from stillframe.controls.masks import GivenMasks, MaskHeader, MaskRecorder
from stillframe.controls.rate import Rate
from stillframe.controls.refresh import Refresh
from stillframe.controls.region import Region
from stillframe.controls.shapes import Box, MotionMap, Painting
from stillframe.controls.stream import ControlState
from stillframe.controls.survey import Survey
from stillframe.controls.trace import RateTrace, Timing
from stillframe.controls.twopass import Forecast

__all__ = [
    "Agreement",
    "Box",
    "CodecDetector",
    "Control",
    "ControlState",
    "ControlledBlock",
    "Controls",
    "Cuts",
    "Demands",
    "Forecast",
    "GivenCuts",
    "GivenMasks",
    "Gop",
    "Guard",
    "MaskHeader",
    "MaskRecorder",
    "MaskVideo",
    "MotionMap",
    "Order",
    "Painting",
    "Rate",
    "RateTrace",
    "Refresh",
    "Region",
    "RunningControl",
    "SourceFacts",
    "StreamFacts",
    "Survey",
    "Timing",
    "build",
    "control_kinds",
    "register",
]
