"""SRT where the FFmpeg of PyAV has none: the program ffmpeg carries the packets, as they are.

PyAV's own wheels are built without libsrt. The program is the one on PATH, or that of the package
imageio-ffmpeg. A transport stream goes through a pipe; nothing is decoded or encoded anew.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess

import av

from stillframe.errors import StillframeError

__all__ = ["SrtProgram", "has_srt"]

_END_S = 2.0
_QUICK = ("-fflags", "nobuffer", "-analyzeduration", "500000")


@functools.cache
def has_srt() -> bool:
    """Whether the FFmpeg of PyAV speaks SRT itself."""
    try:
        av.open("srt:", timeout=1).close()
    except av.error.ProtocolNotFoundError:
        return False
    except (OSError, ValueError, av.FFmpegError):
        return True
    return True


def _ffmpeg() -> str:
    """The program.

    Raises:
        StillframeError: there is none, or it speaks no SRT.
    """
    program = shutil.which("ffmpeg")
    if program is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        program = str(imageio_ffmpeg.get_ffmpeg_exe())
    if program is None:
        raise StillframeError(
            "SRT needs the program ffmpeg, which is not on PATH: install it, or the package "
            "imageio-ffmpeg"
        )
    if not _speaks_srt(program):
        raise StillframeError(f"SRT needs an ffmpeg that has it, and {program} does not")
    return program


@functools.cache
def _speaks_srt(program: str) -> bool:
    command = [program, "-hide_banner", "-protocols"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return "srt" in done.stdout.split()


class SrtProgram:
    """A process that receives or sends a transport stream over SRT.

    Attributes:
        descriptor: the end of its pipe that is ours.
    """

    def __init__(self, arguments: list[str], *, reads: bool) -> None:
        # Ctrl-C is for the program that uses it, which ends it when its own work is done
        self._process = subprocess.Popen(
            [_ffmpeg(), "-hide_banner", "-loglevel", "fatal", "-nostdin", *arguments],
            stdin=subprocess.DEVNULL if reads else subprocess.PIPE,
            stdout=subprocess.PIPE if reads else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=os.name == "posix",
        )
        self._pipe = self._process.stdout if reads else self._process.stdin
        assert self._pipe is not None
        self.descriptor = self._pipe.fileno()

    @classmethod
    def receiving(cls, url: str, listens: bool) -> SrtProgram:
        """What comes from an address, or from whoever calls there."""
        mode = ["-mode", "listener"] if listens else []
        # a list of other files, which anybody may send, is not a transport stream
        quick = ["-f", "mpegts", "-protocol_whitelist", "srt", *_QUICK]
        copied = ["-map", "0", "-c", "copy", "-f", "mpegts", "-flush_packets", "1", "pipe:1"]
        return cls([*quick, *mode, "-i", url, *copied], reads=True)

    @classmethod
    def sending(cls, url: str) -> SrtProgram:
        """What is written, to an address."""
        quick = ["-f", "mpegts", "-protocol_whitelist", "pipe", *_QUICK]
        copied = ["-map", "0", "-c", "copy", "-f", "mpegts", "-flush_packets", "1", url]
        return cls([*quick, "-i", "pipe:0", *copied], reads=False)

    def close(self) -> None:
        """Let it send what it has, for 2 seconds, and end it. Idempotent."""
        assert self._pipe is not None
        try:
            self._pipe.close()
            if self._process.stdout is not None:
                self._process.terminate()
            self._process.wait(_END_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
