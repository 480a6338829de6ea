"""What the computed tokens see, derived a second time; and where the pruned ones end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from tests import stock_pipelines as stock
from torch import Tensor

from stillframe import hooks
from stillframe.errors import InputError
from stillframe.hooks.families.base import find_family
from stillframe.hooks.pruning import ClipPlan
from stillframe.hooks.restoring import noise_weight
from stillframe.hooks.standin import Branch, Refresh

pytestmark = stock.LIBRARIES

# The second derivation: diffusers' own model over the whole sequence with its own processors, in
# which what the pruned tokens' rows hold is replaced wherever another token could see it.

Change = Callable[[Tensor], Tensor]


def providers(plan: ClipPlan) -> Tensor:
    return plan.kept[plan.rows]


@contextmanager
def changed(denoiser: Any, own_noise: bool, changes: dict[Any, Change]) -> Iterator[None]:
    """A denoiser with the inputs of blocks, or outputs of projections, changed."""
    handles = []
    for module, change in changes.items():
        if own_noise:
            handles.append(module.register_forward_pre_hook(entering(change), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda m, a, out, c=change: c(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering(change: Change) -> Any:
    """Hook that changes the tokens that a block is called with."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) == 5:  # VACE's, of the control's tokens, which are made in the first one
            hidden_states, text, control, *rest = args
            if module.proj_in is None:
                control = change(control)
            else:
                change(module.proj_in(control) + hidden_states)
            return (hidden_states, text, control, *rest), kwargs
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def copied(plan: ClipPlan, text_last: bool = False) -> Change:
    """The provider's; where text comes before the video, or behind it, that stays."""

    def change(x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[1])
        start = 0 if text_last else x.shape[1] - plan.tokens
        rows[start : start + plan.tokens] = start + providers(plan)
        return x[:, rows]

    return change


def with_noise(plan: ClipPlan, first: list[Tensor]) -> Change:
    """The provider's, and the difference of what the two entered the first block with."""

    def change(x: Tensor) -> Tensor:
        if not first:
            first.append(x)
        rows = providers(plan)
        return x[:, rows] + (first[0] - first[0][:, rows])

    return change


def one_pass(name: str, pipe: Any, video: Tensor, guidance: float = 1.0) -> Tensor:
    """Latents after the only step of a pipeline."""
    more: dict[str, Any] = {"strength": 1.0} if "v2v" in name else {}
    more |= {"num_inference_steps": 1, "guidance_scale": guidance, "output_type": "latent"}
    return stock.frames_first(name, stock.run(name, pipe, video, **more))


def kept_cells(session: Any, latents: Tensor) -> Tensor:
    """The cells of computed tokens, of latents (F, C, H, W)."""
    keep, side = session.plan.keep, session.geometry.patch
    return latents.movedim(1, 0)[:, keep.repeat_interleave(side, 1).repeat_interleave(side, 2)]


@pytest.mark.parametrize("name", [name for name in sorted(stock.MAKERS) if "animate" not in name])
@pytest.mark.parametrize("standin", ["neighbour", "copy"])
def test_attention_sees_all_places(name: str, standin: str) -> None:
    pipe, video = stock.MAKERS[name](), stock.clip()
    with hooks.apply(pipe, video=video, standin=standin) as session:
        pruned = one_pass(name, pipe, video)
    plan = session.plan
    assert plan is not None
    plain = one_pass(name, pipe, video)
    changes: dict[Any, Change] = {}
    family: Any = find_family(pipe)
    for stack in family.stacks(pipe.transformer):
        noise = with_noise(plan, [])
        for block in stack:
            if standin == "neighbour":
                changes[block] = noise
            else:
                attn: Any = family.attention(block)
                changes[attn.to_k] = changes[attn.to_v] = copied(plan, "hunyuan" in name)
    with changed(pipe.transformer, standin == "neighbour", changes):
        derived = one_pass(name, pipe, video)
    ours, theirs = kept_cells(session, pruned), kept_cells(session, derived)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (kept_cells(session, plain) - theirs).abs().max() > 1e-2


def of_providers(session: Any) -> Change:
    """Frames of tokens (B F, n, D), at pruned places of their resolution their provider's."""

    def change(x: Tensor) -> Tensor:
        frames, rows, columns = session.plan.keep.shape
        side = int((rows * columns / x.shape[1]) ** 0.5)
        provider = session.clip.coarser(side).plan().provider
        x = x.unflatten(0, (-1, frames))
        return x.gather(1, provider.flatten(1)[None, :, :, None].expand(x.shape)).flatten(0, 1)

    return change


@pytest.mark.parametrize("name", ["animatediff-t2v", "animatediff-v2v"])
@pytest.mark.parametrize("standin", ["neighbour", "copy"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_unet_adds_to_pruned_places_what_it_adds_to_providers(
    name: str, standin: str, guidance: float
) -> None:
    """Of every part of a block; attention over time and convolutions are whole."""
    pipe, video = stock.MAKERS[name](), stock.clip()
    with hooks.apply(pipe, video=video, standin=standin) as session:
        pruned = one_pass(name, pipe, video, guidance)
    assert session.clip is not None
    assert all(session.clip.coarser(side).plan().kept_share < 0.9 for side in (1, 2))
    plain = one_pass(name, pipe, video, guidance)
    change = of_providers(session)

    def over_time(x: Tensor) -> Tensor:  # (B n, F, D)
        frames, branches = x.shape[1], 1 + (guidance > 1)
        x = x.unflatten(0, (branches, -1)).transpose(1, 2).flatten(0, 1)
        return change(x).unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)

    changes: dict[Any, Change] = {}
    for module_name, block in pipe.unet.named_modules():
        if not module_name.endswith("transformer_blocks.0"):
            continue
        changes[block.ff] = over_time if "motion" in module_name else change
        if "motion" not in module_name:
            changes[block.attn1.to_out[0]] = changes[block.attn2] = change
            if standin == "copy":
                changes[block.attn1.to_k] = changes[block.attn1.to_v] = change
    with changed(pipe.unet, False, changes):
        derived = one_pass(name, pipe, video, guidance)
    ours, theirs = kept_cells(session, pruned), kept_cells(session, derived)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (kept_cells(session, plain) - theirs).abs().max() > 1e-3


def test_pruning_alone_sees_what_is_computed() -> None:
    from tests.tiny import Masked, set_self_attention

    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video, standin="none") as session:
        pruned = one_pass(name, pipe, video)
    plan = session.plan
    assert plan is not None
    set_self_attention(pipe.transformer, Masked(plan.keep.flatten().expand(plan.tokens, -1)))
    derived = one_pass(name, pipe, video)
    torch.testing.assert_close(
        kept_cells(session, pruned), kept_cells(session, derived), rtol=1e-4, atol=1e-4
    )


def test_the_sources_keys_and_values() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video, standin="source") as session:
        pruned = one_pass(name, pipe, video)
    plan = session.plan
    assert plan is not None
    clean = pipe.vae.encode(2 * video.transpose(0, 1)[None] - 1).latent_dist.mode()
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    clean = (clean - mean) / std
    linear = [x for b in pipe.transformer.blocks for x in (b.attn1.to_k, b.attn1.to_v)]
    seen: dict[Any, Tensor] = {}

    def keep_output(module: Any, args: Any, out: Tensor) -> None:
        seen[module] = out

    handles = [module.register_forward_hook(keep_output) for module in linear]
    pipe.transformer(clean, torch.zeros(1), stock.embeds(1))
    for handle in handles:
        handle.remove()
    at = plan.keep.flatten().view(1, -1, 1)

    def replaced(module: Any) -> Change:
        stored = seen[module]
        return lambda x: torch.where(at, x, stored)

    with changed(pipe.transformer, False, {module: replaced(module) for module in linear}):
        derived = one_pass(name, pipe, video)
    torch.testing.assert_close(
        kept_cells(session, pruned), kept_cells(session, derived), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["wan-v2v", "wan-t2v", "wan-t2v-two-experts"])
def test_branches_of_guidance_keep_to_themselves(name: str) -> None:
    """Refreshed once, at the first step: every branch has keys and values of its own pass."""
    given: dict[tuple[Branch, int], Tensor] = {}
    reused: list[Branch] = []

    class Watched(Refresh):
        def observe(self, branch: Branch, number: int, key: Tensor, value: Tensor) -> None:
            super().observe(branch, number, key, value)
            given[branch, number] = key

        def __call__(self, layer: Any) -> tuple[Tensor, Tensor]:
            key, value = super().__call__(layer)
            assert key is given[layer.branch, layer.number]
            reused.append(layer.branch)
            return key, value

    pipe, video = stock.MAKERS[name](), stock.clip()
    with hooks.apply(pipe, video=video, standin=Watched(1, 100)):
        stock.run(name, pipe, video, num_inference_steps=6)
    experts = 2 if "two" in name else 1
    assert len({branch for branch, _ in given}) == 2 * experts
    names = {name for _, name in set(reused)}
    assert names == ({"0", "1"} if "v2v" in name else {"cond", "uncond"})
    first = {branch: key for (branch, number), key in given.items() if number == 1}
    keys = list(first.values())
    assert all(not torch.equal(a, b) for a in keys for b in keys if a is not b)


@pytest.mark.parametrize(("first", "every"), [(1, 2), (2, 3), (3, 1)])
def test_which_steps_are_whole(first: int, every: int) -> None:
    standin = Refresh(first, every)
    standin.observe((0, "a"), 0, torch.empty(0), torch.empty(0))
    whole = [standin.whole((0, "a"), step) for step in range(9)]
    assert whole == [s < first or (s - first + 1) % every == 0 for s in range(9)]
    assert standin.whole((0, "b"), 8) is True
    with pytest.raises(ValueError, match="at least 1, got 0, 5"):
        Refresh(0, 5)


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "flow-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=5.0),
    "flow-unipc": stock.unipc,
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "ddim-v": lambda: DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "ddim-x0": lambda: DDIMScheduler(clip_sample=False, prediction_type="sample"),
    "cogvideox-ddim": lambda: CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True
    ),
    "euler": lambda: EulerDiscreteScheduler(),
    "euler-v": lambda: EulerDiscreteScheduler(prediction_type="v_prediction"),
    "dpm": lambda: DPMSolverMultistepScheduler(),
    "dpm-flow": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
}


@pytest.mark.parametrize("kind", sorted(SCHEDULERS))
def test_pruned_places_end_at_their_providers_result(kind: str) -> None:
    """With noise of their own until then."""
    scheduler = SCHEDULERS[kind]()
    scheduler.set_timesteps(6)
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double()
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    apart = []
    for t in scheduler.timesteps:
        seen = scaled(x, t)
        weight = noise_weight(scheduler, t.expand(1))
        said = torch.sin(3 * seen[:1]) + 0.1
        output = said + weight * (seen - seen[:1])
        x = scheduler.step(output, t, x, return_dict=False)[0]
        apart.append((x[0] - x[1]).abs().mean().item())
    assert apart[-1] < 1e-5 < 0.01 < apart[-2]


def test_pruned_places_end_at_their_providers_result_with_second_order_steps() -> None:
    scheduler = CogVideoXDPMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True
    )
    scheduler.set_timesteps(6)
    x = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    old = None
    for n, t in enumerate(scheduler.timesteps):
        output = torch.sin(3 * x[:1]) + noise_weight(scheduler, t.expand(1)) * (x - x[:1])
        back = scheduler.timesteps[n - 1] if n else None
        # the noise that it adds differs from place to place, as it should
        x, old = scheduler.step(output, old, t, back, x, return_dict=False)
    torch.testing.assert_close(x[0], x[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(stock.MAKERS))
def test_the_decoder_sees_providers_at_pruned_places(name: str) -> None:
    pipe, video = stock.MAKERS[name](), stock.clip()
    with hooks.apply(pipe, video=video) as session:
        latents = stock.frames_first(name, stock.run(name, pipe, video, output_type="latent"))
    plan, geometry = session.plan, session.geometry
    assert plan is not None
    provider = plan.provider
    for side in (1, 2):
        provider = provider.repeat_interleave(geometry.patch, side)
    expected = latents.gather(0, provider.unsqueeze(1).expand_as(latents))
    torch.testing.assert_close(latents, expected, rtol=0, atol=2e-5)


def test_held_pixels_are_the_providers_last_frame() -> None:
    name, video = "wan-v2v", stock.clip()
    pipe = stock.MAKERS[name]()
    with hooks.apply(pipe, video=video) as session:
        out = stock.run(name, pipe, video)[0]
    held = hooks.hold(out, session)
    plan, geometry = session.plan, session.geometry
    assert plan is not None
    for latent, row, column in torch.cartesian_prod(*(torch.arange(n) for n in plan.keep.shape)):
        area = (slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        own = geometry.pixel_frames(int(latent))
        got = held[own][:, :, area[0], area[1]]
        if plan.keep[latent, row, column]:
            assert torch.equal(got, out[own][:, :, area[0], area[1]])
        else:
            last = geometry.pixel_frames(int(plan.provider[latent, row, column])).stop - 1
            assert torch.equal(got, out[last][:, area[0], area[1]].expand_as(got))
    array = hooks.hold(out.movedim(1, -1).numpy(), session)
    assert torch.equal(torch.from_numpy(array).movedim(-1, 1), held)
    pictures = pipe.video_processor.postprocess_video(2 * out.transpose(0, 1)[None] - 1, "pil")[0]
    for picture, frame in zip(hooks.hold(pictures, session), held, strict=True):
        (expected,) = pipe.video_processor.numpy_to_pil(frame.movedim(0, -1).numpy())
        assert picture.tobytes() == expected.tobytes()
    with pytest.raises(InputError, match=r"has 9 frames of 96x64, .* has 17 of 96x64"):
        hooks.hold(out[:9], session)
