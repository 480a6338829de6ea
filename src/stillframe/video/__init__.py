"""Video files in and out, frame by frame.

`reading` decodes, `writing` encodes; both stream, so that memory does not grow with length. Neither
knows of models, tensors or the sizes that a model wants (`stillframe.fit`).
"""

from __future__ import annotations

from stillframe.video.reading import Frame, VideoReader
from stillframe.video.writing import VideoWriter, check_output

__all__ = ["Frame", "VideoReader", "VideoWriter", "check_output"]
