"""``stillframe live``: a camera or stream, edited in real time and sent on, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from stillframe.cli.command import Given, flag, takes
from stillframe.cli.edit import placed_prompt
from stillframe.cli.interruption import Interruption
from stillframe.cli.options import (
    LOADING,
    MODEL,
    OUTPUT,
    PROMPT,
    QUIET,
    SIZE,
    STREAM,
    live_edits,
    load,
    part,
)
from stillframe.cli.screen import say, warn
from stillframe.config import EditConfig
from stillframe.options import Option

if TYPE_CHECKING:
    from collections.abc import Callable

    from stillframe.live.broadcast import BroadcastReport
    from stillframe.live.feed import SourceFacts
    from stillframe.live.outlet import Outlet
    from stillframe.video import Sink, Source

__all__ = ["live"]

_CAMERA = "camera"
_FORMATS = ("mpegts", "flv", "matroska")

_OWN = {
    "in_": Option(
        "str",
        "Read this: rtsp://, rtmp://, srt://, udp://, tcp:// or http://, a camera (/dev/video0), "
        "a file at its own pace, or - for stdin.",
        metavar="SOURCE",
        required=True,
    ),
    "out": Option(
        "str",
        "Send it there: rtmp://, srt://, udp:// or tcp://, - for stdout, or camera (camera:NAME) "
        "for a virtual camera.",
        metavar="OUT",
        required=True,
        short="o",
    ),
    **PROMPT,
    "listen": Option(
        "bool",
        "Wait at the address of --in for a sender that calls: rtmp://, rtsp://, srt://, tcp://.",
        default=False,
    ),
    "reconnect": Option(
        "float",
        "Try again for so long when the source or the output has gone; 0: that is the end.",
        default=60.0,
        metavar="SECONDS",
        least=0,
        most=86400,
    ),
}
_FIRST = ("method", "tolerance", "strength", "target_fps", "rate_mode")
_STREAM = {name: each for name, each in STREAM.items() if name != "background"}


def options() -> Mapping[str, Option]:
    """Options of the command: what most people need, then the others by what they are about."""
    edits = live_edits()
    first = {**_OWN, **MODEL, "height": SIZE["height"], **part(edits, _FIRST), **QUIET}
    return {**first, **SIZE, "crf": OUTPUT["crf"], **edits, **LOADING, **_STREAM}


@takes(options)
def live(given: Given) -> None:
    """Edit a camera or a stream in real time and send it on.

    Where `edit` takes every frame, this keeps up with the clock: the newest frames win if the model
    is slower than the source, sound waits for its pictures, and a source that goes away is called
    again. Ctrl-C ends it.
    """
    with ExitStack() as stack:
        source, sink = _source(given), _sink(given["out"], given["output_format"])
        to_stdout = sink is not None and sink.kind == "pipe"
        if sink is not None:
            from stillframe.video import video_on_stdout

            sink = stack.enter_context(video_on_stdout(sink))

        def tell(sentence: str) -> None:
            if not given["quiet"]:
                say(sentence, stderr=True)

        text, _, doubts = placed_prompt(given["model"], given["prompt"], given["style"])
        for doubt in doubts:
            warn(doubt)
        names = live_edits()
        values = {name: given[name] for name in names if name in given}
        config = EditConfig.from_options(values, named=flag)
        tell(f"loading the model {given['model']}")
        started = time.perf_counter()
        pipe = load(given, prompts=(text,))
        tell(f"the model is loaded, {time.perf_counter() - started:.1f} s")
        from stillframe.live.broadcast import broadcast

        with Interruption() as interrupted:
            done = broadcast(
                pipe, source, _opener(given, sink, interrupted, tell), prompt=text, config=config,
                height=given["height"], width=given["width"], reconnect=given["reconnect"],
                stop=interrupted, tell=tell,
            )  # fmt: skip
        if not given["quiet"]:
            say(_summary(done), stderr=to_stdout)


def _source(given: Mapping[str, Any]) -> Source:
    from stillframe.video import Source, VideoReader
    from stillframe.video.formats import MAX_PIXELS

    source = Source.of(
        given["in_"], given["input_format"], given["input_timeout"],
        max_pixels=given["max_pixels"] or MAX_PIXELS,
    )  # fmt: skip
    if given["listen"]:
        return source.listening
    if not source.is_live:
        VideoReader(source).close()  # what cannot be read is refused before a model is loaded
    return source


def _sink(name: str, format: str | None) -> Sink | None:
    """Where it goes; None for a virtual camera."""
    if name.partition(":")[0] == _CAMERA:
        return None
    from stillframe.video import Sink

    if name == "-" and format is None:
        format = "mpegts"
    if format is not None and format not in _FORMATS:
        raise ValueError(f"--output-format is {' or '.join(_FORMATS)} here, got {format!r}")
    sink = Sink.of(name, format)
    if sink.kind == "file":
        raise ValueError(
            f"--out is a URL, - or camera, got {name!r}; `stillframe edit` writes files"
        )
    return sink


def _opener(
    given: Mapping[str, Any],
    sink: Sink | None,
    stop: Callable[[], bool],
    tell: Callable[[str], None],
) -> Callable[[SourceFacts], Outlet]:
    """What opens the outlet for frames of a kind."""
    from stillframe.live.outlet import CameraOutlet, StreamOutlet

    def opened(facts: SourceFacts) -> Outlet:
        size = facts.width, facts.height, facts.fps
        if sink is None:
            camera = CameraOutlet(given["out"].partition(":")[2] or None, *size)
            tell(f"sending to the virtual camera {camera.name}")
            return camera
        stream = StreamOutlet(sink, *size, given["crf"], facts.has_sound, stop)
        tell(f"sending to {sink.name}")
        return stream

    return opened


def _summary(done: BroadcastReport) -> str:
    if not done.frames_out:
        return f"ended before the first block was done: {done.frames_in} frames were read"
    told = (
        f"{done.frames_out} frames in {done.seconds:.1f} s were sent, {done.dropped} of "
        f"{done.frames_in} left out"
    )
    if done.latency_p50 is not None and done.latency_p95 is not None:
        told += f"; from arrival to encoder {done.latency_p50:.2f} s, at most "
        told += f"{done.latency_p95:.2f} s for 95%"
    return told
