"""Whether a model that was fetched is what its recipe expects, and makes sense: one picture through
its autoencoder, one block through its transformer, and what can be told from the numbers.

Nothing here knows what a good result looks like; a person does, from the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stillframe.autoencoders.streaming import StreamingAutoencoder, open_autoencoder
from stillframe.engine.stream import BlockStats, EditStream
from stillframe.errors import ModelError
from stillframe.jobs.bench import device_name
from stillframe.loading import hub
from stillframe.loading.assemble import Task
from stillframe.loading.checkpoint import weights_in
from stillframe.loading.device_memory import forget_peak, peak_memory
from stillframe.loading.load import (
    find_source,
    load_pipeline,
    missing_files,
    model_styles,
    pick_device,
    working_size,
)
from stillframe.methods import find_method
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.whole_file import open_whole

__all__ = ["Checked", "check_model", "picture", "write_thumbnail"]

#: What a published model is asked for.
PROMPT = "A red fox walks through fresh snow, golden light, the camera follows it"

# A round trip of the picture through the bundled autoencoder has 21.5 dB at 96x64,
# and through random weights less than 15.
_LEAST_PSNR = 18.0
# Latents are normalised, and so are results: their standard deviation is near 1, and of a picture
# with little in it, or by an autoencoder without statistics of its own, a few times less.
_STD = 0.1, 3.0
_SEED = 0


class _Part(NamedTuple):
    """A measured stage: what came out, and its seconds."""

    out: Tensor
    seconds: float


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        rows: what was looked at and what it is, in words and numbers.
        doubts: what no sane model has, a sentence each; none where all is well.
        thumbnail: (H, W, 3) uint8, side by side: the picture, the same through the autoencoder, and
            the last frame of the block.
    """

    rows: tuple[tuple[str, str], ...]
    doubts: tuple[str, ...]
    thumbnail: NDArray[np.uint8]


class _Noting:
    """An autoencoder's stream that keeps the latents it is given to decode."""

    def __init__(self, stream: StreamingAutoencoder) -> None:
        self._stream, self.latents = stream, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def decode(self, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        """See `StreamingAutoencoder.decode`."""
        self.latents.append(latents)
        return self._stream.decode(latents, changed)


def check_model(
    name: str,
    *,
    vae: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    height: int | None = None,
    width: int | None = None,
) -> Checked:
    """Look at a model's files, load it, and run a picture and a block through it.

    Args:
        name, vae, device, dtype: see ``loading.load.load_pipeline``.
        height, width: in pixels; by default those that the model makes video in.

    Raises:
        ModelError: files are missing, or not what is expected: other tensors, other shapes, numbers
            that are not plain or not finite.
        ValueError: a size or a name is out of range.
    """
    wanted = hub.on_disk(missing_files(name, vae))
    absent = [file.name for file in wanted if not file.present]
    if absent:
        raise ModelError(
            f"{name} lacks {len(absent)} of {len(wanted)} files on disk, first {absent[0]}: "
            f"`stillframe models fetch {name}` gets them"
        )
    files = _files(name, vae)
    where = pick_device(device)
    size = working_size(name, vae=vae, height=height, width=width, generate=True)
    forget_peak(where)
    started = time.perf_counter()
    prompt = _prompt(name)
    task = Task(*size, generate=True, prompts=(prompt,))
    pipe = load_pipeline(name, device=device, dtype=dtype, vae=vae, task=task)
    loaded = time.perf_counter() - started
    return _looked_at(pipe, size, prompt, (*_about(pipe, name), *files), loaded)


def _prompt(name: str) -> str:
    """A style that the model has learnt, if it has learnt styles."""
    styles = model_styles(name)
    return styles[min(1, len(styles) - 1)].prompt if styles else PROMPT  # the first is none


def _about(pipe: CausalWanPipeline, name: str) -> list[tuple[str, str]]:
    """Which versions of what, and where."""
    packages = ", ".join(f"{each} {version(each)}" for each in ("stillframe", "torch", "diffusers"))
    kind = str(pipe.transformer.dtype).removeprefix("torch.")
    return [
        ("model", name),
        ("versions", packages),
        ("device", f"{device_name(pipe.compute_device)}, {kind}"),
    ]


def _files(name: str, vae: str | None) -> list[tuple[str, str]]:
    """The weight files of a model's transformer: how large, how many tensors, of which kind.

    Raises:
        ModelError: one cannot be read, or has no such entries.
    """
    source = find_source(name, vae)
    recipe = source.recipe
    if recipe is None:
        folder = source.folder() / "transformer"
        paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        keys: tuple[str, ...] = ()
    else:
        known = [file for file in (recipe.file, recipe.lora) if file is not None]
        paths = [hub.require(recipe.repo_place, file, name) for file in known]
        keys = recipe.keys
    rows = []
    for number, path in enumerate(paths):
        # a low-rank update has entries of its own, which it is merged by
        found = weights_in(path, keys if number == 0 or recipe is None else None)
        rows.append((f"file {path.name}", f"{hub.size_text(path.stat().st_size)}, {found}"))
    return rows


def _looked_at(
    pipe: CausalWanPipeline,
    size: tuple[int, int],
    prompt: str,
    rows: tuple[tuple[str, str], ...],
    loaded: float,
) -> Checked:
    """Run a picture and a block through a model that is loaded."""
    card = picture(*size).to(pipe.compute_device)
    there, back, psnr = _round_trip(pipe, card)
    result, x0, stats = _one_block(pipe, card, prompt)
    peak = peak_memory(pipe.compute_device)
    parameters = sum(p.numel() for p in pipe.transformer.parameters())
    channels, count = x0.shape[1:3]
    spent = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stats.seconds.items())
    found = [
        ("loaded", f"{parameters / 1e9:.2f} billion parameters, all finite, in {loaded:.1f} s"),
        ("picture", f"{size[1]}x{size[0]}, to latents in {there.seconds:.2f} s, back in "
                    f"{back.seconds:.2f} s"),
        ("latents of the picture", _statistics(there.out)),
        ("round trip", f"PSNR {psnr:.1f} dB"),
        ("block", f"{'from a prompt' if pipe.config.generates else 'edited'}: {count} latent "
                  f"frames of {channels} channels, {result.shape[1]} frames"),
        ("its latents, x0", _statistics(x0)),
        ("its frames", _statistics(result)),
        ("its time", spent),
        ("peak memory", "not known" if peak is None else f"{peak / 1e9:.2f} GB"),
    ]  # fmt: skip
    doubts = [
        *_doubts("latents of the picture", there.out),
        *_doubts("latents of the block", x0),
        *_doubts("frames of the block", result, None),
    ]
    if not psnr >= _LEAST_PSNR:
        doubts.append(
            f"a picture that goes through the autoencoder comes back with a PSNR of {psnr:.1f} dB, "
            f"and a sane one has {_LEAST_PSNR:g} or more"
        )
    shown = torch.cat([card[0, -1], back.out[0, -1].to(card), result[0, -1].to(card)], 2)
    return Checked((*rows, *found), tuple(doubts), _thumbnail(shown))


def _round_trip(pipe: CausalWanPipeline, card: Tensor) -> tuple[_Part, _Part, float]:
    """A still block through the autoencoder: its latents, its pictures, and their PSNR in dB."""
    stream = open_autoencoder(pipe.vae, pipe.config.block_frames)
    frames = card.expand(-1, stream.next_frames, -1, -1, -1)
    there = _timed(lambda: stream.encode_block(frames), pipe)
    back = _timed(lambda: stream.decode(there.out), pipe)
    error = (back.out[:, -1].float() - card[:, -1]).square().mean().item()
    psnr = float("nan") if error != error else -10 * float(np.log10(max(error, 1e-12)))
    return there, back, psnr


def _timed(work: Callable[[], Tensor], pipe: CausalWanPipeline) -> _Part:
    started = time.perf_counter()
    with torch.inference_mode():
        out = work()
    if pipe.compute_device.type == "cuda":
        torch.cuda.synchronize(pipe.compute_device)
    return _Part(out, time.perf_counter() - started)


def _one_block(
    pipe: CausalWanPipeline, card: Tensor, prompt: str
) -> tuple[Tensor, Tensor, BlockStats]:
    """The first block of a video from a prompt or, of a model that only edits, of the picture.

    Returns:
        frames (1, T, 3, H, W), latents (1, C, S, h, w), and what was computed.
    """
    stats: list[BlockStats] = []
    generates = pipe.config.generates
    settings = pipe.generation_settings() if generates else pipe.settings()
    coder: Any = _Noting(open_autoencoder(pipe.vae, settings.block_frames))
    stream = EditStream(
        pipe.denoiser,
        coder,
        pipe.text(prompt),
        find_method("full")(),
        settings,
        torch.Generator().manual_seed(_SEED),
        stats.append,
    )
    if generates:
        side = pipe.timeline.spatial
        shape = pipe.denoiser.latent_channels, settings.block_frames
        sides = card.shape[-2] // side, card.shape[-1] // side
        frames = stream.edit_block(torch.zeros(1, *shape, *sides, device=card.device))
    else:
        pushed = stream.push(card.expand(-1, coder.next_frames, -1, -1, -1))
        assert pushed is not None
        frames = pushed
    return frames, coder.latents[0], stats[0]


def _statistics(x: Tensor) -> str:
    """Mean, spread and extremes, and how many numbers are none."""
    x, lost = x.float(), int((~x.isfinite()).sum())
    told = f"mean {x.mean():.3f}, std {x.std():.3f}, from {x.min():.2f} to {x.max():.2f}"
    return f"{told}, {lost} not finite" if lost else told


def _doubts(what: str, x: Tensor, bounds: tuple[float, float] | None = _STD) -> list[str]:
    """What no sane model's numbers are."""
    if lost := int((~x.isfinite()).sum()):
        return [f"{lost} of {x.numel()} numbers in the {what} are not finite"]
    spread = x.float().std().item()
    if bounds is not None and not bounds[0] <= spread <= bounds[1]:
        low, high = bounds
        return [
            f"the {what} have a standard deviation of {spread:.3f}, and sane ones have "
            f"{low:g} to {high:g}"
        ]
    return []


def picture(height: int, width: int) -> Tensor:
    """A test picture (1, 1, 3, H, W) in [0, 1]: colours that flow into each other, a disc, bars."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    aspect = width / height
    card = torch.stack([(x + 1) / 2, (y + 1) / 2, (2 - x - y) / 4])
    disc = (x * aspect).square() + y.square() < 0.25
    card = torch.where(disc, torch.tensor([0.9, 0.4, 0.1]).view(3, 1, 1), card)
    bars = (y > 0.7) & (torch.floor((x + 1) * 8) % 2 == 0)
    card = torch.where(bars, torch.tensor(0.15), card)
    return card.view(1, 1, 3, height, width)


def write_thumbnail(found: Checked, path: Path) -> None:
    """Write the pictures as PNG.

    Raises:
        OutputError: that cannot be done; nothing half-written is left.
    """
    with open_whole(path) as file:
        Image.fromarray(found.thumbnail).save(file, "PNG")


def _thumbnail(shown: Tensor, most: int = 960) -> NDArray[np.uint8]:
    """(3, H, W) as a picture (H', W', 3) of at most so many columns."""
    finite = shown.float().nan_to_num(0.0).clamp(0, 1)
    scale = min(1.0, most / shown.shape[2])
    if scale < 1:
        finite = F.interpolate(finite.unsqueeze(0), scale_factor=scale, mode="area")[0]
    levels = (finite * 255).round().to(torch.uint8).permute(1, 2, 0)
    made: NDArray[np.uint8] = levels.cpu().numpy()
    return made
