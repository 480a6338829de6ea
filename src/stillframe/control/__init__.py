"""What a stream is asked for beyond its method: whole blocks, refresh, cuts, regions, masks."""

from stillframe.control.cuts import Cuts
from stillframe.control.gop import Gop
from stillframe.control.masks import GivenMasks, MaskHeader, MaskRecorder
from stillframe.control.refresh import Refresh
from stillframe.control.region import Box, Painting, Region
from stillframe.control.stream import Control, Happened, StreamControl

__all__ = [
    "Box",
    "Control",
    "Cuts",
    "GivenMasks",
    "Gop",
    "Happened",
    "MaskHeader",
    "MaskRecorder",
    "Painting",
    "Refresh",
    "Region",
    "StreamControl",
]
