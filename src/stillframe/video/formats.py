"""What FFmpeg may open and how large a picture it may decode, whatever a file says.

FFmpeg tells a format by a file's content, not by its name, and some formats are lists of other
files (concat, HLS, DASH, SDP, IMF): a ``clip.mp4`` that is one would be read with what it lists.
Formats and protocols are therefore whitelists. Opens nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import IO, Any

from av.format import ContainerFormat
from PIL import Image

from stillframe.errors import InputError

__all__ = [
    "MAX_PIXELS",
    "NO_DECODER",
    "check_pixels",
    "limit_decoder",
    "open_options",
    "picture_options",
]

# The name of no protocol and of no decoder.
_NONE = "none"
#: Pixels of the largest picture that is decoded unless somebody says otherwise: 8192x4320, the
#: largest frame in common use (8K), 101 MiB as RGB.
MAX_PIXELS = 8192 * 4320

#: Options with which nothing is decoded.
NO_DECODER = {"codec_whitelist": _NONE}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONTAINERS = _names(
    "3gp apng asf avi dv flv gif gxf ivf live_flv matroska mov mp4 mpeg mpegts mxf nsv nut "
    "nuv obu ogg rm swf webm wtv yuv4mpegpipe"
)
# Elementary streams and pictures one after another.
_STREAMS = _names(
    "av1 avs2 avs3 cavsvideo dirac dnxhd evc h261 h263 h264 hevc m4v mjpeg mpegvideo mpjpeg "
    "image2pipe rawvideo vc1 vc1test vvc"
)
# Read to say what a file is that is no video: sound, text, single pictures.
_NO_VIDEO = _names(
    "aac ac3 aiff amr ass au caf eac3 flac mp3 srt w64 wav webvtt wv bin idf tty xbin"
)
_PICTURES = _names(
    "bmp_pipe dds_pipe dpx_pipe exr_pipe gif_pipe hdr_pipe j2k_pipe jpeg_pipe jpegls_pipe "
    "jpegxl_pipe pam_pipe pbm_pipe pcx_pipe pgm_pipe pgmyuv_pipe png_pipe ppm_pipe psd_pipe "
    "qoi_pipe sgi_pipe sunrast_pipe tiff_pipe webp_pipe xbm_pipe xpm_pipe xwd_pipe image2"
)
# What cameras and players' addresses speak. The last two are lists, of addresses on the network.
_NETWORK = frozenset({"rtp", "rtsp", "hls", "dash"})
_NETWORK_PROTOCOLS = (
    "http,https,httpproxy,tls,tcp,udp,udplite,rtp,srtp,rtmp,rtmps,rtmpt,rtmpte,rtmpts,rtmpe,srt,"
    "rtsp,crypto,data"
)
# Formats that open other files; they are not opened even if they are asked for by name.
_LISTS = frozenset(
    {"applehttp", "concat", "dash", "hls", "imf", "sap", "sdp", "vobsub", "webm_dash_manifest"}
)


def open_options(kind: str, format: str | None, max_pixels: int) -> dict[str, str]:
    """Options of FFmpeg for a source.

    Args:
        kind: of `places.Source`: file, pipe, network or device.
        format: FFmpeg's name of the format that the user asked for, None to find out; a device's
            is one. Any is opened that is no list.
        max_pixels: of a picture, also for the decoders that look at the first ones.
    """
    asked = frozenset(() if format is None else ContainerFormat(format, "r").name.split(","))
    if kind == "device":
        # not a file's format but a driver, which only the user can name
        return {"format_whitelist": ",".join(sorted(asked)), **_decoding(max_pixels)}
    known = _CONTAINERS | _STREAMS | _NO_VIDEO | _PICTURES | (asked - _LISTS)
    if kind == "network":
        known |= _NETWORK
    protocols = {"file": "file", "network": _NETWORK_PROTOCOLS}.get(kind, _NONE)
    return _options(known, protocols, max_pixels)


def picture_options(max_pixels: int) -> dict[str, str]:
    """Options of FFmpeg for a single picture that is handed over open."""
    return _options(_PICTURES, _NONE, max_pixels)


def _options(formats: frozenset[str], protocols: str, max_pixels: int) -> dict[str, str]:
    return {
        "format_whitelist": ",".join(sorted(formats)),
        "protocol_whitelist": protocols,
        # a name with %d in it is a name
        "pattern_type": "none",
        **_decoding(max_pixels),
    }


def limit_decoder(codec_context: Any, max_pixels: int) -> None:
    """Have a decoder refuse larger pictures before it makes room for them.

    To be called before its first packet.
    """
    codec_context.options = {**codec_context.options, **_decoding(max_pixels)}


def _decoding(max_pixels: int) -> dict[str, str]:
    # codecs count whole coding blocks; frames are checked exactly
    return {"max_pixels": str(min(max_pixels + max_pixels // 4 + 2**16, 2**31 - 1))}


def check_pixels(name: str, width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture that is too large.

    Raises:
        InputError: it is.
    """
    if width * height > max_pixels:
        raise InputError(
            f"{name} has pictures of {width}x{height}, which is {width * height} pixels, and at "
            f"most {max_pixels} are decoded unless --max-pixels says otherwise"
        )


@contextmanager
def unread_picture(file: str | PathLike[str] | IO[bytes], *formats: str) -> Iterator[Image.Image]:
    """A picture that Pillow has opened and not decoded, whatever its size: the limit is ours.

    Raises:
        OSError: it is in none of the formats, by Pillow's names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from error
    with image:
        yield image
