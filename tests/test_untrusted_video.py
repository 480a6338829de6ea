"""Files that are lists of other files, and pictures that are larger than anybody wants."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.video_samples import gradient, make_video
from typer.testing import CliRunner

from stillframe.cli.app import app
from stillframe.controls import build
from stillframe.errors import InputError
from stillframe.methods.prune import InterFramePruning
from stillframe.video import Source, VideoReader
from stillframe.video.control_files import VideoControlFiles
from stillframe.video.formats import MAX_PIXELS, open_options

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 {1}\ns=x\nc=IN IP4 {1}\nt=0 0\nm=video 5004 RTP/AVP 26\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
    "<Representation><BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>"
)
LISTS = {
    "list.ffconcat": "ffconcat version 1.0\nfile {0}\n",
    "concat.mp4": "ffconcat version 1.0\nfile {0}\n",
    "clip.m3u8": HLS,
    "hls.mp4": HLS,
    "camera.sdp": SDP,
    "dash.mp4": DASH,
    "clip.mpd": DASH,
    "clip.idx": "# VobSub index file, v7\nid: en, index: 0\n",
}


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """One with a clip that lists may name, and the lists."""
    frames = [gradient(index) for index in range(8)]
    clip = make_video(tmp_path / "clip.ts", frames, codec="mpeg2video")
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text.format(clip.name, "127.0.0.1"))
    (tmp_path / "absolute.mp4").write_text(LISTS["concat.mp4"].format(clip))
    return tmp_path


@pytest.mark.parametrize("name", [*LISTS, "absolute.mp4"])
def test_no_list_is_followed_whatever_it_is_called(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=name) as caught:
        VideoReader(folder / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["concat", "hls", "sdp"])
def test_no_list_is_followed_even_if_it_is_asked_for(folder: Path, format: str) -> None:
    name = {"concat": "concat.mp4", "hls": "clip.m3u8", "sdp": "camera.sdp"}[format]
    with pytest.raises(InputError):
        VideoReader(Source.of(folder / name, format))


def test_a_list_in_a_pipe_is_not_followed(folder: Path, tmp_path: Path) -> None:
    for name in ("absolute.mp4", "clip.m3u8", "camera.sdp"):
        with (folder / name).open("rb") as file, pytest.raises(InputError):
            VideoReader(Source("-", "pipe", descriptor=file.fileno()))


def test_a_picture_that_is_a_list_is_none(folder: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "1.png").write_text(LISTS["concat.mp4"].format(folder / "clip.ts"))
    with pytest.raises(InputError, match="1 pictures and not one"):
        VideoReader(pictures)


def test_a_name_with_a_pattern_in_it_is_a_name(tmp_path: Path) -> None:
    """FFmpeg would read the numbered neighbours instead."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a1.png")
    path = tmp_path / "a%d.png"
    path.write_bytes(b"not a picture")
    for options, width in (({}, 64), (open_options("file", None, MAX_PIXELS), 0)):
        with av.open(str(path), options=options) as container:
            assert container.streams.video[0].codec_context.width == width


@pytest.fixture(name="address")
def address_fixture(folder: Path) -> Iterator[str]:
    """Of a web server that has the folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_that_the_user_names_may_be_a_list_of_addresses(address: str) -> None:
    with VideoReader(Source.of(f"{address}/clip.m3u8")) as reader:
        assert len(list(reader)) == 8


@pytest.mark.parametrize("place", ["{0}", "file://{0}", "crypto:{0}", "concat:{0}"])
def test_a_list_on_the_network_opens_no_file(folder: Path, address: str, place: str) -> None:
    (folder / "far.m3u8").write_text(HLS.format(place.format(folder / "clip.ts")))
    with pytest.raises(InputError):
        VideoReader(Source.of(f"{address}/far.m3u8", timeout=5))


# sizes


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [
        (".mp4", "libx264", "yuv420p"),
        (".mkv", "ffv1", "bgr0"),
        (".webm", "libvpx-vp9", "yuv420p"),
        (".avi", "mpeg4", "yuv420p"),
        (".gif", "gif", "rgb8"),
        (".mov", "png", "rgb24"),
        (".ts", "libx264", "yuv420p"),
        (".y4m", "wrapped_avframe", "yuv420p"),
    ],
)
def test_pictures_above_the_limit_are_refused_with_their_numbers(
    tmp_path: Path, suffix: str, codec: str, pixel_format: str
) -> None:
    frames = [gradient(0, 640, 480)] * 2
    path = make_video(tmp_path / f"a{suffix}", frames, codec=codec, pixel_format=pixel_format)
    VideoReader(Source.of(path, max_pixels=640 * 480)).close()
    for most in (1024, 640 * 480 - 1):
        with pytest.raises(InputError, match=f"640x480.*307200 pixels.*{most}"):
            VideoReader(Source.of(path, max_pixels=most))


def test_8000_by_8000_is_above_the_limit_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "large.gif"
    Image.new("P", (8000, 8000)).save(path, save_all=True, append_images=[Image.new("P", (8, 8))])
    with pytest.raises(InputError, match="8000x8000"):
        VideoReader(path)


def test_a_decoder_makes_no_room_for_what_a_header_hides(tmp_path: Path) -> None:
    """An MPEG-TS has no sizes of its own: only its first picture tells."""
    frames = [gradient(0, 1280, 720)] * 3
    path = make_video(tmp_path / "a.ts", frames, codec="mpeg2video")
    with path.open("rb") as file, pytest.raises(InputError, match="at most 1024 pixels"):
        VideoReader(Source("-", "pipe", descriptor=file.fileno(), max_pixels=1024))


def test_a_picture_that_grows_later_is_refused_with_its_numbers(tmp_path: Path) -> None:
    first = make_video(tmp_path / "a.ts", [gradient(0)] * 3, codec="mpeg2video")
    second = make_video(tmp_path / "b.ts", [gradient(0, 96, 64)] * 3, codec="mpeg2video")
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(path) as reader:
        assert len(list(reader)) > 3
    with (
        VideoReader(Source.of(path, max_pixels=64 * 48)) as reader,
        pytest.raises(InputError, match="96x64"),
    ):
        list(reader)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tga"])
def test_numbered_pictures_above_the_limit_are_refused(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(gradient(0, 640, 480)).save(tmp_path / f"1{suffix}")
    with pytest.raises(InputError, match="640x480"):
        VideoReader(Source.of(tmp_path, max_pixels=1024))
    with VideoReader(tmp_path) as reader:
        assert (reader.width, reader.height) == (640, 480)


def test_an_animated_webp_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    frames = [Image.fromarray(np.full((48, 64, 3), 9 * i, np.uint8)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="64x48"):
        VideoReader(Source.of(path, max_pixels=1024))
    with VideoReader(path) as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize("most", [-1, 0, 255, 2**31, 10**30])
def test_limits_have_limits(tmp_path: Path, most: int) -> None:
    with pytest.raises(ValueError, match=str(most)):
        Source.of(tmp_path / "a.mp4", max_pixels=most)


def test_a_region_is_painted_in_a_picture_that_runs_nothing(tmp_path: Path) -> None:
    """Pillow hands PostScript to a program."""
    path = tmp_path / "a.png"
    Image.new("L", (64, 48), 255).save(path, format="EPS")
    with pytest.raises(InputError, match="neither"):
        build({"roi": str(path)}, InterFramePruning(), files=VideoControlFiles())


def test_a_region_is_painted_in_a_picture_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (8192, 4321), 1).save(path)
    with pytest.raises(InputError, match="8192x4321"):
        build({"roi": str(path)}, InterFramePruning(), files=VideoControlFiles())


def test_the_command_takes_a_limit(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", [gradient(0, 640, 480)] * 2)
    out = tmp_path / "b.mp4"
    arguments = ["edit", str(path), "-o", str(out), "--prompt", "sepia", "--max-pixels", "307199"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "640x480" in result.stderr
    assert not out.exists()
