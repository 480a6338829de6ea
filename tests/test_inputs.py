"""What callers hand in: understood as diffusers understands it, or refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from tests import tiny
from torch import Tensor

from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.pipelines.clips import read_clip

FRAMES, HEIGHT, WIDTH = 14, 32, 48
PROCESSOR = VideoProcessor(vae_scale_factor=16)


@pytest.fixture(scope="module")
def pipe() -> CausalWanPipeline:
    return tiny.pipeline()


def pixels(batch: int = 1) -> Tensor:
    """(B, T, 3, H, W) float32 in [0, 1] at levels of 8 bits."""
    return (tiny.clip(FRAMES, HEIGHT, WIDTH, batch=batch) * 255).round() / 255


def images(mode: str) -> list[PIL.Image.Image]:
    frames = (pixels()[0].permute(0, 2, 3, 1) * 255).byte().numpy()
    return [PIL.Image.fromarray(frame).convert(mode) for frame in frames]


def read(video: Any, height: int | None = None, width: int | None = None) -> Tensor:
    return read_clip(video, PROCESSOR, 16, height, width)


# clips


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_images_of_any_mode_are_read_as_their_colours(mode: str) -> None:
    """The same as Pillow's own way to RGB, which only the first one is already."""
    video = images(mode)
    colours = np.stack([np.asarray(image.convert("RGB")) for image in video])
    expected = torch.from_numpy(colours).permute(0, 3, 1, 2)[None] / 255
    torch.testing.assert_close(read(video), expected, rtol=0, atol=1e-6)


def test_palettes_with_transparency_are_read_as_their_colours() -> None:
    video = images("P")
    for image in video:
        image.info["transparency"] = bytes(range(256))
    assert torch.equal(read(video), read(images("P")))


def test_a_call_takes_them(pipe: CausalWanPipeline) -> None:
    done: Any = [
        pipe(images(mode), "night", generator=torch.Generator().manual_seed(0), output_type="pt")
        for mode in ("RGB", "RGBA")
    ]
    assert torch.equal(done[0].frames, done[1].frames)


def test_images_of_several_sizes_are_brought_to_one() -> None:
    video = [images("RGB")[0], images("RGB")[1].resize((64, 80))]
    assert read(video, height=32, width=48).shape == (1, 2, 3, 32, 48)


TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "float16": lambda v: v[0].half(),
    "bfloat16": lambda v: v[0].bfloat16(),
    "float64 array": lambda v: v[0].double().permute(0, 2, 3, 1).numpy(),
    "big endian": lambda v: v[0].permute(0, 2, 3, 1).numpy().astype(">f4"),
    "long doubles": lambda v: v[0].permute(0, 2, 3, 1).numpy().astype(np.longdouble),
    "read-only": lambda v: np.broadcast_to(v[0].permute(0, 2, 3, 1).numpy(), (14, 32, 48, 3)),
    "flipped twice": lambda v: v[0].permute(0, 2, 3, 1).numpy()[:, ::-1][:, ::-1],
    "overshooting": lambda v: v[0] * (1 + 2e-3) - 1e-3,
    "list of frames": lambda v: list(v[0]),
    "list of clips": lambda v: [v[0]],
    "list of batches": lambda v: [v],
    "list of lists of frames": lambda v: [list(v[0])],
    "list of lists of arrays": lambda v: [[x.permute(1, 2, 0).numpy() for x in v[0]]],
    "grad": lambda v: v[0].clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_meant_is_taken(kind: str) -> None:
    got = read(TAKEN[kind](pixels()))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, pixels(), rtol=0, atol=4e-3)
    assert 0 <= got.min() <= got.max() <= 1


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "channels first": (
        lambda: pixels()[0].transpose(0, 1),
        r"a tensor is \(T, 3, H, W\), or a batch of these, got \(3, 14, 32, 48\)",
    ),
    "channels first, batch": (
        lambda: pixels().transpose(1, 2),
        r"a tensor is \(T, 3, H, W\), or a batch of these, got \(3, 14, 32, 48\)",
    ),
    "channels first, array": (
        lambda: pixels()[0].numpy(),
        r"an array is \(T, H, W, 3\), or a batch of these, got \(14, 3, 32, 48\)",
    ),
    "channels last, tensor": (lambda: pixels()[0].permute(0, 2, 3, 1), r"got \(14, 32, 48, 3\)"),
    "RGBA tensor": (lambda: torch.rand(14, 4, 32, 48), r"got \(14, 4, 32, 48\)"),
    "latents": (lambda: torch.rand(2, 4, 4, 32, 48), r"got \(4, 4, 32, 48\)"),
    "grey array": (lambda: np.zeros((14, 32, 48)), r"got \(14, 32, 48\)"),
    "one frame": (lambda: pixels()[0, 0], r"got \(3, 32, 48\)"),
    "six dimensions": (lambda: pixels()[None], r"got \(1, 1, 14, 3, 32, 48\)"),
    "one image": (lambda: images("RGB")[0], "a list of images, got a single one"),
    "a list of one image's lists": (lambda: [images("RGB"), images("RGB")[0]], "a single one"),
    "floats up to 255": (
        lambda: pixels() * 255,
        r"in \[0, 1\] or uint8, got numbers from \d\S* to",
    ),
    "array up to 255": (
        lambda: pixels()[0].permute(0, 2, 3, 1).numpy() * 255,
        r"in \[0, 1\] or uint8",
    ),
    "from -1 to 1": (lambda: pixels() * 2 - 1, r"got numbers from -\S+ to \S+"),
    "NaN": (
        lambda: pixels().index_fill(1, torch.tensor([3]), torch.nan),
        "4608 numbers that are not",
    ),
    "infinite": (lambda: pixels() / 0, "numbers that are not finite"),
    "uint16": (lambda: np.zeros((14, 32, 48, 3), np.uint16), "uint8 or floating.*, got uint16"),
    "int64": (lambda: (pixels() * 255).long(), "uint8 or floating.*, got int64"),
    "bool": (lambda: pixels() > 0.5, "uint8 or floating.*, got bool"),
    "complex": (lambda: pixels()[0].permute(0, 2, 3, 1).numpy() + 0j, "got complex64"),
    "objects": (lambda: np.full((2, 32, 48, 3), None), "got object"),
    "16 bits": (
        lambda: [PIL.Image.fromarray(np.zeros((32, 48), np.uint16))] * 3,
        "images have 8 bits a channel, got one of mode 'I;16'",
    ),
    "float images": (
        lambda: [PIL.Image.fromarray(np.zeros((32, 48), np.float32))] * 3,
        "got one of mode 'F'",
    ),
    "unequal clips": (
        lambda: [pixels()[0], pixels()[0, :9]],
        "clips of a batch are equally long, got 9 and 14",
    ),
    "unequal image clips": (lambda: [images("L"), images("L")[:5]], "equally long, got 5 and 14"),
    "unequal sizes": (
        lambda: [pixels()[0], torch.rand(14, 3, 48, 48)],
        "of one size, got 48x32 and 48x48",
    ),
    "unequal frames": (
        lambda: [torch.rand(3, 32, 48), torch.rand(3, 32, 64)],
        r"of one kind and size, got \(3, 32, 48\) and \(3, 32, 64\)",
    ),
    "unequal images": (
        lambda: [images("RGB")[0], images("RGB")[0].resize((64, 32))],
        "of one size, got 48x32 and 64x32",
    ),
    "kinds": (lambda: [pixels()[0, 0], images("RGB")[0]], "of one kind and size"),
    "kinds of clips": (lambda: [pixels()[0], images("RGB")], "of one kind, got images and numbers"),
    "something among images": (lambda: [images("RGB")[0], 3], "arrays or tensors, got int"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_meant_is_refused_in_one_sentence(
    kind: str, pipe: CausalWanPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = REFUSED[kind]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(CausalWanPipeline, "encode_prompt", never)
    with pytest.raises(ValueError, match=said) as told:
        pipe(make(), "night")
    assert "\n" not in str(told.value)


# streams


def edited(pipe: CausalWanPipeline, video: Tensor) -> Tensor:
    stream = pipe.stream("night", generator=torch.Generator().manual_seed(0))
    parts = [stream.push(video), stream.flush()]
    return torch.cat([part for part in parts if part is not None], 1)


def test_a_stream_takes_bytes(pipe: CausalWanPipeline) -> None:
    video = pixels()
    assert torch.equal(edited(pipe, (video * 255).byte()), edited(pipe, (video * 255).byte() / 255))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v * 255, r"frames are in \[0, 1\] or uint8, got numbers from"),
        (lambda v: v[0], r"frames are \(B, T, 3, H, W\), got \(14, 3, 32, 48\)"),
        (lambda v: v[0, 0], r"got \(3, 32, 48\)"),
        (lambda v: v.transpose(1, 2), r"got \(1, 3, 14, 32, 48\)"),
        (lambda v: v.permute(0, 1, 3, 4, 2), r"got \(1, 14, 32, 48, 3\)"),
        (lambda v: v / 0, "frames hold [0-9]+ numbers that are not finite"),
        (lambda v: v.where(v < 0.9, torch.nan), "not finite"),
        (lambda v: (v * 255).short(), "uint8 or floating.*got int16"),
        (lambda v: v.numpy(), "a tensor .*, got ndarray"),
        (lambda v: None, "a tensor .*, got NoneType"),
        (lambda v: v[..., :0], "multiples of 16, got 0x32"),
    ],
)
def test_a_stream_refuses_others_and_goes_on(
    pipe: CausalWanPipeline, change: Callable[[Tensor], Any], said: str
) -> None:
    video = pixels()
    stream = pipe.stream("night", generator=torch.Generator().manual_seed(0))
    parts = [stream.push(video[:, :5])]
    with pytest.raises(ValueError, match=said):
        stream.push(change(video))
    parts += [stream.push(video[:, 5:]), stream.flush()]
    got = torch.cat([part for part in parts if part is not None], 1)
    assert torch.equal(got, edited(pipe, video))


def test_a_stream_that_was_refused_everything_has_nothing_to_flush(
    pipe: CausalWanPipeline,
) -> None:
    stream = pipe.stream("night")
    with pytest.raises(ValueError, match=r"\(B, T, 3, H, W\)"):
        stream.push(pixels()[0])
    assert stream.flush() is None


# noise and prompts


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        (0, "a torch.Generator or a list of them, got int"),
        ([0], "got int"),
        ([None], "got NoneType"),
        ("cpu", "got str"),
        ([torch.Generator()] * 3, "3 generators for a batch of 2"),
        ([], "0 generators for a batch of 2"),
    ],
)
def test_what_is_no_source_of_noise_is_refused(
    pipe: CausalWanPipeline, generator: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        pipe(pixels(2), "night", generator=generator)
    with pytest.raises(ValueError, match=said):
        pipe.stream("night", generator=generator).push(pixels(2))
    with pytest.raises(ValueError, match=said):
        pipe.generate(["night", "oil"], 5, 32, 48, generator=generator)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (3, "a prompt is text, got int"),
        (["night", 3], "a prompt is text, got int"),
        ([None], "a prompt is text, got NoneType"),
        ([], "there are 0 prompts"),
    ],
)
def test_what_is_no_prompt_is_refused(pipe: CausalWanPipeline, prompt: Any, said: str) -> None:
    for call in (lambda: pipe(pixels(), prompt), lambda: pipe.stream(prompt)):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(ValueError, match=said):
        pipe.generate(prompt, 5, 32, 48)


@pytest.mark.parametrize(
    ("embeds", "said"),
    [
        (torch.zeros(5, 16), r"prompt_embeds are \(B, L, 16\), got \(5, 16\)"),
        (torch.zeros(1, 5, 17), r"got \(1, 5, 17\)"),
        (torch.zeros(1, 0, 16), r"got \(1, 0, 16\)"),
        (torch.full((1, 5, 16), torch.nan), "finite"),
        (torch.zeros(1, 5, 16, dtype=torch.long), "floating-point"),
        ([[0.0]], "a tensor, got list"),
    ],
)
def test_what_are_no_embeddings_is_refused(pipe: CausalWanPipeline, embeds: Any, said: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: pipe(pixels(), prompt_embeds=embeds),
        lambda: pipe.stream(prompt_embeds=embeds),
        lambda: pipe.generate(None, 5, 32, 48, prompt_embeds=embeds),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=said):
            call()
