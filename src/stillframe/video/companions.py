"""What a file has beside its pictures: sound, subtitles, chapters, tags. Only looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from stillframe.video.library import fraction

__all__ = ["Companions", "describe", "find_companions", "stream_tags"]

# What programs write about the file that they made, which is not true of a copy.
_OF_THE_FILE = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "encoded_by"}
    | {"metadatacreator", "hasaudio", "hasvideo", "canseekontime", "hasmetadata", "haskeyframes"}
)
# seconds: more than a packet of sound
_LATE_S = 0.045
_OF_STREAMS = ("language", "title")


class Companions(NamedTuple):
    """What goes along with the pictures of a file.

    Attributes:
        sounds: streams of sound, the default one first.
        subtitles: streams of subtitles.
        chapters: as PyAV has them, counted from the file's start.
        tags: title, date and so on.
        others: what cannot be kept whatever the container, in words.
        late: indices of streams of sound that begin later than the file.
    """

    sounds: tuple[Stream, ...] = ()
    subtitles: tuple[Stream, ...] = ()
    chapters: tuple[dict[str, Any], ...] = ()
    tags: Mapping[str, str] = MappingProxyType({})
    others: tuple[str, ...] = ()
    late: frozenset[int] = frozenset()

    def until(self, end: Fraction) -> Companions:
        """The same, with chapters up to `end` in seconds."""
        kept = []
        for chapter in self.chapters:
            last = round(end / (chapter["time_base"] or 1))
            if chapter["start"] < last:
                kept.append({**chapter, "end": min(chapter["end"], last)})
        return self._replace(chapters=tuple(kept))


def find_companions(container: InputContainer, video: VideoStream, start: Fraction) -> Companions:
    """All that an open file has beside one of its streams; `start` is its first second."""
    sounds = sorted(container.streams.audio, key=lambda s: not s.disposition & Disposition.default)
    chapters = [_moved(dict(chapter), start) for chapter in container.chapters()]
    tags = {
        key: value
        for key, value in container.metadata.items()
        if key.lower() not in _OF_THE_FILE and not key.startswith("_")
    }
    return Companions(
        tuple(sounds),
        tuple(container.streams.subtitles),
        tuple(chapters),
        tags,
        _others(container, video, has_chapters=bool(chapters)),
        frozenset(stream.index for stream in sounds if _is_late(stream, start)),
    )


def describe(stream: Stream) -> str:
    """A stream in words: its language if known, codec and kind."""
    context = stream.codec_context
    name = "unknown" if context is None else context.codec.canonical_name
    kind = "sound" if stream.type == "audio" else "subtitles"
    language = stream.metadata.get("language")
    return " ".join(part for part in (language, name, kind) if part and part != "und")


def stream_tags(stream: Stream) -> dict[str, str]:
    """Language and title of a stream."""
    return {key: stream.metadata[key] for key in _OF_STREAMS if key in stream.metadata}


def _moved(chapter: dict[str, Any], start: Fraction) -> dict[str, Any]:
    base = chapter["time_base"] = fraction(chapter["time_base"])
    if base is not None:
        ticks = round(start / base)
        chapter["start"], chapter["end"] = chapter["start"] - ticks, chapter["end"] - ticks
    return chapter


def _is_late(stream: Stream, start: Fraction) -> bool:
    base = fraction(stream.time_base)
    if base is None or stream.start_time is None:
        return False
    return stream.start_time * base - start > _LATE_S


def _others(
    container: InputContainer, video: VideoStream, *, has_chapters: bool
) -> tuple[str, ...]:
    told = []
    for stream in container.streams:
        if stream.type == "video" and stream.index != video.index:
            is_cover = stream.disposition & Disposition.attached_pic
            told.append("cover art" if is_cover else "another video stream")
        elif stream.type == "attachment":
            told.append("an attachment")
        elif stream.type == "data" and not has_chapters:
            # MP4 has its chapters in such a stream, too
            told.append("a data stream")
    return tuple(dict.fromkeys(told))
