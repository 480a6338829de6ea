"""Long clips in windows of time: what a denoiser is called on, and that no seam is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffVideoToVideoPipeline, FirstBlockCacheConfig
from tests import stock_pipelines as stock
from tests.test_hooks import hanging
from torch import Tensor

from stillframe import hooks
from stillframe.errors import InputError
from stillframe.hooks.families import find_family
from stillframe.hooks.pruning import Clip
from stillframe.hooks.splitting import TimeWindows

pytestmark = stock.LIBRARIES
#: Names of pipelines, with the frames of a window and of an overlap.
NAMES = {"wan-v2v": (17, 9), "cogvideox-v2v": (17, 9), "animatediff-v2v": (8, 4)}


@pytest.fixture(scope="module", params=sorted(NAMES))
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, stock.MAKERS[request.param]()


def edit(named: tuple[str, Any], video: Tensor, **how: Any) -> Tensor:
    """A clip in windows, (T, 3, H, W)."""
    name, pipe = named
    length, overlap = NAMES[name]
    how = {"length": length, "overlap": overlap, **how}
    edited: Tensor = hooks.windows(pipe, **{**stock.arguments(name, video), **how})
    return edited


def frames_of(name: str, count: int) -> int:
    """Frames of a clip of so many windows."""
    length, overlap = NAMES[name]
    return length + (count - 1) * (length - overlap)


def test_one_window_is_a_plain_call(named: tuple[str, Any]) -> None:
    name, pipe = named
    before, video = hanging(pipe), stock.clip(frames=NAMES[name][0])
    with hooks.apply(pipe, video=video) as session:
        plain = stock.run(name, pipe, video)[0]
    assert torch.equal(edit(named, video), plain)
    assert torch.equal(edit(named, video, hold=True), hooks.hold(plain, session))
    assert hanging(pipe) == before


@pytest.mark.parametrize("standin", sorted(hooks.standins))
def test_what_is_not_computed_is_one_picture_over_all_windows(
    named: tuple[str, Any], standin: str
) -> None:
    """Its latents end at those of the frame that stands for it, be it in whatever window."""
    name, pipe = named
    video = stock.clip(frames=frames_of(name, 3))
    with hooks.apply(pipe, video=video) as session:
        plan, patch = session.plan, session.geometry.patch
    assert plan is not None
    assert bool((plan.provider[-1] == 0).any())  # frames of no common window
    made = stock.frames_first(name, edit(named, video, standin=standin, output_type="latent")[None])
    provider = plan.provider.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    stood = made.gather(0, provider.unsqueeze(1).expand_as(made))
    torch.testing.assert_close(made, stood, rtol=0, atol=1e-3)


def test_windows_are_held_as_the_whole_clip_is(named: tuple[str, Any]) -> None:
    name, pipe = named
    video = stock.clip(frames=frames_of(name, 3))
    with hooks.apply(pipe, video=video) as session:
        pass
    shown, plain = (edit(named, video, hold=held) for held in (True, False))
    assert torch.equal(shown, hooks.hold(plain, session))


def test_a_border_is_no_larger_a_step_than_others() -> None:
    """Of a pipeline whose autoencoder knows single frames: a temporal one of random weights makes
    steps of its own everywhere."""
    name = "animatediff-v2v"
    length, overlap = NAMES[name]
    video = stock.clip(still=True, frames=frames_of(name, 3))
    video[:, :, 16:32, 16:32] = torch.linspace(0.2, 0.8, len(video)).view(-1, 1, 1, 1)
    borders = [length - 1 + n * (length - overlap) for n in range(2)]
    shown = edit((name, stock.MAKERS[name]()), video)
    steps = (shown[1:] - shown[:-1]).square().mean((1, 2, 3)).sqrt()
    others = [t for t in range(len(steps)) if t not in borders]
    assert steps[borders].max() <= steps[others].max()


def shares(windows: TimeWindows, frames: int, step: int) -> list[list[float]]:
    """The weight of every window in a frame's average, for a second time."""
    stride = windows.length - windows.overlap
    moved = -step * (windows.overlap + 1) % stride
    rows = []
    for start in range(-moved, frames - windows.overlap, stride):
        end = start + windows.length
        ramp = [min(n - start + 1, end - n, windows.overlap + 1) for n in range(frames)]
        rows.append([max(weight, 0) for weight in ramp])
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return [[weight / total for weight, total in zip(row, sums, strict=True)] for row in rows]


def by_hand(name: str, pipe: Any, windows: TimeWindows, leading: int = 0) -> Callable[[], None]:
    """Have a denoiser's forward be called on windows, each with tensors that are cut here; gives
    what undoes it."""
    family = find_family(pipe)
    denoiser: Any = family.denoisers(pipe)[0]
    stock_forward, calls = denoiser.forward, [0]
    dim = 1 if name.startswith("cogvideox") else 2
    branches = 1 if name.startswith(("animatediff", "cogvideox")) else 2

    def forward(first: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        latents = kwargs.pop(family.latents) if first is None else first
        frames = latents.shape[dim] - leading
        step = calls[0] // branches
        spans = windows.spans(frames, step)
        calls[0] += 1
        assert len(spans) > 1
        total: Any = 0
        for span, share in zip(spans, shares(windows, frames, step), strict=True):
            at = [*range(leading), *(leading + frame for frame in span)]
            given = dict(kwargs)
            if "control_hidden_states" in given:
                given["control_hidden_states"] = given["control_hidden_states"][:, :, at]
            if given.get("image_rotary_emb") is not None:
                places = len(given["image_rotary_emb"][0]) // frames
                given["image_rotary_emb"] = [
                    x[: places * len(at)] for x in given["image_rotary_emb"]
                ]
            if name.startswith("animatediff"):
                text = given["encoder_hidden_states"]
                given["encoder_hidden_states"] = text[: 2 * len(at)].clone()
                for half in range(2):
                    given["encoder_hidden_states"][half * len(at) :] = text[half * frames]
            cut = latents.index_select(dim, torch.tensor(at))
            out = stock_forward(cut, *args, **{**given, "return_dict": False})[0]
            weight = torch.tensor([1 / len(spans)] * leading + [share[frame] for frame in span])
            whole = torch.zeros_like(latents.narrow(3 - dim, 0, out.shape[3 - dim]))
            weight = weight.view(-1, *[1] * (4 - dim))
            total = total + whole.index_add(dim, torch.tensor(at), weight * out)
        if kwargs.get("return_dict", True):
            return type("Output", (), {"sample": total})()
        return (total,)

    denoiser.forward = forward
    return lambda: vars(denoiser).pop("forward")


@pytest.mark.parametrize("name", [*sorted(NAMES), "wan-vace"])
def test_windows_by_hand(name: str) -> None:
    pipe = stock.MAKERS[name]()
    video, windows = stock.clip(frames=25 if name != "animatediff-v2v" else 8), TimeWindows(4, 2)
    more: dict[str, Any] = {"output_type": "latent"}
    if name == "wan-vace":
        more["reference_images"] = [stock.picture(video[0])]
    undo = by_hand(name, pipe, windows, leading=int(name == "wan-vace"))
    expected = stock.run(name, pipe, video, **more)
    undo()
    with hooks.apply(pipe, video=video, method="full") as session:
        session.windows = windows
        made = stock.run(name, pipe, video, **more)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made, stock.run(name, pipe, video, **more), rtol=1e-2, atol=1e-2)


@contextmanager
def of_noise(noise: Tensor) -> Iterator[None]:
    """Have AnimateDiff begin with this noise."""
    kind, name = AnimateDiffVideoToVideoPipeline, "prepare_latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, lambda *_, **__: noise)
        yield


def test_pruned_windows_by_hand() -> None:
    """After one step, which is linear in what is predicted: of calls on the windows on their own,
    with a mask, so what is computed in each is its own clip's matter."""
    name = "animatediff-v2v"
    pipe = stock.MAKERS[name]()
    video = stock.clip(still=True, frames=12)
    # two tokens a side, so that coarser ones change alike
    for frame, level in enumerate((0, 1, 0, 1, 2, 2, 0, 3, 3, 0, 2, 1)):
        video[frame, :, 16:32, 32:48] = level / 4
    noise = torch.randn(1, 4, 12, 8, 12, generator=torch.Generator().manual_seed(4))
    how: dict[str, Any] = {"num_inference_steps": 1, "strength": 1.0, "output_type": "latent"}
    with hooks.apply(pipe, video=video) as session:
        clip, plan = session.clip, session.plan
    assert clip is not None
    assert plan is not None
    spans, parts = [range(8), range(4, 12)], []
    for span in spans:
        at = slice(span.start, span.stop)
        mask = clip.part(plan, span).keep
        assert not bool(mask.all())
        with hooks.apply(pipe, video=video[at], mask=mask), of_noise(noise[:, :, at]):
            parts.append(stock.run(name, pipe, video[at], **how))
    expected = torch.zeros_like(noise)
    for span, share, part in zip(spans, shares(TimeWindows(8, 4), 12, 0), parts, strict=True):
        weight = torch.tensor([share[frame] for frame in span]).view(-1, 1, 1)
        expected[:, :, span.start : span.stop] += weight * part
    expected = expected.gather(2, plan.provider.view(1, 1, *plan.provider.shape).expand_as(noise))
    with of_noise(noise):
        made = edit((name, pipe), video, **how)
    torch.testing.assert_close(made, expected[0], rtol=0, atol=1e-3)


def test_what_is_computed_in_a_window() -> None:
    """What the clip's plan computes, and few of what is provided from outside of it."""
    level = 3 * torch.rand(17, 3, 4, generator=torch.Generator().manual_seed(0))
    level[:, 0] = 0  # never changes
    clip = Clip((level.unsqueeze(0) - level.unsqueeze(1)).abs(), None)
    plan = clip.plan()
    for span in (range(6), range(5, 11), range(11, 17)):
        at = slice(span.start, span.stop)
        part = clip.part(plan, span)
        assert bool((part.keep >= plan.keep[at]).all())
        assert float((level[at] - level[at].gather(0, part.provider)).abs().max()) <= 1
        assert bool(part.keep.gather(0, part.provider).all())
        assert bool((part.keep[:, 0].sum(0) == 1).all())


def test_windows_of_a_step() -> None:
    for length, overlap in ((6, 2), (5, 3), (6, 1), (21, 5)):
        windows = TimeWindows(length, overlap)
        assert windows.spans(length, 3) == [range(length)]
        for frames in (length + 1, 2 * length, 5 * length + 2):
            least = ceil((frames - overlap) / (length - overlap))
            often = torch.zeros(frames - 1)
            for step in range(64):
                spans, shares = windows.spans(frames, step), windows.shares(frames, step)
                assert {len(span) for span in spans} == {length}
                assert (spans[0].start, spans[-1].stop) == (0, frames)
                assert least <= len(spans) <= least + 1
                assert all(one.stop - other.start >= overlap for one, other in pairwise(spans))
                torch.testing.assert_close(shares.sum(0), torch.ones(frames))
                # a window has a share of what it sees alone
                seen = torch.stack([torch.tensor([n in s for n in range(frames)]) for s in spans])
                assert bool((seen | (shares == 0)).all())
                border = shares.diff(dim=1).abs().sum(0) / 2
                assert float(border.max()) <= 1.3 / (overlap + 1)
                often += border / 64
            # over many steps none is a border more often than others
            assert float(often.max()) <= 1.3 / (length - overlap)


def test_windows_that_agree_are_what_they_are_of() -> None:
    windows, whole = TimeWindows(6, 2), torch.randn(2, 3, 15, 2, 2)
    for dim, clip in ((2, whole), (1, whole.transpose(1, 2))):
        numbers = [torch.tensor([0, *(1 + frame for frame in s)]) for s in windows.spans(14, 1)]
        outputs = [(at, clip.index_select(dim, at)) for at in numbers]
        made = windows.average(outputs, windows.shares(14, 1), dim)
        torch.testing.assert_close(made, clip)


@pytest.mark.parametrize("method", ["full", "prune"])
def test_a_denoiser_sees_a_window_at_a_time(named: tuple[str, Any], method: str) -> None:
    name, pipe = named
    video, family, seen = stock.clip(frames=frames_of(name, 4)), find_family(pipe), []
    denoiser: Any = family.denoisers(pipe)[0]
    plain = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs[family.latents].shape[family.frame_dim])
        return plain(*args, **kwargs)

    denoiser.forward = forward
    try:
        edit(named, video, method=method, output_type="latent")
    finally:
        del denoiser.forward
    assert {*seen} == {family.geometry(pipe).length(NAMES[name][0])}


def test_callbacks_and_kinds_of_output_are_as_ever() -> None:
    name, video = "wan-v2v", stock.clip(frames=25)
    pipe, seen = stock.MAKERS[name](), []

    def called(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, sorted(given)))
        return {}

    more: dict[str, Any] = {
        "callback_on_step_end": called,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    tensors = edit((name, pipe), video)
    given = {**stock.arguments(name, video, **more), "output_type": "pil"}
    pictures = hooks.windows(pipe, **given, length=17, overlap=9)
    assert [step for step, _ in seen] == [*range(len(seen))]
    assert {*seen[0][1]} == {"prompt_embeds"}
    assert len(pictures) == 25
    shown = (tensors[24].movedim(0, -1) * 255).round().byte().numpy()
    assert pictures[24].tobytes() == shown.tobytes()


def test_what_windows_cannot_do_is_refused() -> None:
    video = stock.clip(frames=25)
    pipe: Any = stock.MAKERS["wan-v2v"]()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(InputError, match="this clip is denoised in 2 windows: call disable_cache"):
        edit(("wan-v2v", pipe), video)
    pipe.transformer.disable_cache()
    assert edit(("wan-v2v", pipe), video).shape == video.shape
    pipe = stock.MAKERS["ltx-t2v"]()
    with hooks.apply(pipe, video=video) as session:
        session.windows = TimeWindows(2, 1)
        with pytest.raises(InputError, match=r"windows need latents of frames, .* have 3 axes"):
            stock.run("ltx-t2v", pipe, video)


def test_lengths_that_a_pipeline_has_not_are_refused() -> None:
    pipe = stock.MAKERS["wan-v2v"]()
    video = stock.clip(frames=25)
    before = hanging(pipe)

    def refused(message: str, clip: Tensor = video, **how: Any) -> None:
        with pytest.raises(InputError, match=message):
            hooks.windows(pipe, **{**stock.arguments("wan-v2v", clip), **how})

    refused(r"a window has 4n \+ 1 frames in this pipeline, got 16", length=16)
    refused(r"an overlap has 4n \+ 1 frames in this pipeline, got 4", length=17, overlap=4)
    refused("windows of 9 frames cannot share 9 with the next one", length=9, overlap=9)
    refused(r"a clip has 4n \+ 1 frames in this pipeline, got 24", video[:24], length=17)
    assert hanging(pipe) == before
