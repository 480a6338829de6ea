"""Edit a generated clip by the installed command, and look at what came out."""

import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile

import av
import numpy as np

import stillframe

FRAMES, HEIGHT, WIDTH = 20, 96, 160


def main() -> None:
    """Raises if the command fails, or if the clip's frames are not there afterwards."""
    assert "site-packages" in stillframe.__file__, stillframe.__file__
    with tempfile.TemporaryDirectory() as folder:
        source, out = pathlib.Path(folder, "in.mp4"), pathlib.Path(folder, "out.mp4")
        with av.open(str(source), "w") as file:
            stream = file.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(FRAMES):
                picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
                picture[30:60, 4 * number : 4 * number + 30] = (200, 60, 30)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode(None))
        command = pathlib.Path(sys.executable).with_name("stillframe")
        words = ["edit", source, "-o", out, "--style", "oil"]
        subprocess.run([command, *words], check=True)
        with av.open(str(out)) as file:
            sizes = [(frame.height, frame.width) for frame in file.decode(video=0)]
    assert sizes == [(HEIGHT, WIDTH)] * FRAMES, sizes
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("torch", "diffusers", "av")]
    sys.stdout.write(f"Python {sys.version.split()[0]}, {', '.join(versions)}: edited\n")


if __name__ == "__main__":
    main()
