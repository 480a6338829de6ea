"""Video files and streams in and out, frame by frame.

`reading` decodes, `writing` encodes, `places` says where; all is streamed, so that memory does not
grow with length. None knows of models, tensors or the sizes that a model wants (`fit`).
"""

from __future__ import annotations

from stillframe.video.pipes import video_on_stdout
from stillframe.video.places import Sink, Source
from stillframe.video.reading import Frame, VideoReader
from stillframe.video.targets import check_file, check_output
from stillframe.video.vectors import BlockMotion
from stillframe.video.writing import VideoWriter

__all__ = [
    "BlockMotion",
    "Frame",
    "Sink",
    "Source",
    "VideoReader",
    "VideoWriter",
    "check_file",
    "check_output",
    "video_on_stdout",
]
