"""Every built-in recipe, from a published file to a rollout, against the stock model under a mask.

A small random checkpoint is written as each publication has it, loaded by the recipe's name, and
run through the pipeline. The reference never sees the loaded model, a cache, or the loop: it is
diffusers' transformer with the weights that were written, run for every pass over the whole
sequence so far, under a mask made from the definition of block, window and sink.

Where frames and positions part. Positions are absolute up to `limit` frames; past it the latest
frame stays at the last position. Without a sink that is no difference, since rotary attention knows
only distances, and the plain masked model is the reference at any length. With one it is: the only
rollout here that gets there is Rolling Forcing's text-to-video, whose first eviction comes after 21
frames, and its reference is `Saturating`. All others are the masked model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from tests import tiny
from tests.published import base_folder, publish
from tests.tiny import Masked, Saturating, causal_mask, set_self_attention, stock, visible_frames
from torch import Tensor

from stillframe.autoencoders.base import StreamingAutoencoder
from stillframe.loading import recipes
from stillframe.loading.load import load_pipeline
from stillframe.loading.recipes import RECIPES_VARIABLE, Recipe, read_recipes
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.tokens.grid import Grid, patchify

BUILT_IN = read_recipes(Path(recipes.__file__).with_suffix(".toml"))
PREFIXES = (
    "model.",
    "model._fsdp_wrapped_module.",
    "net.",
    "model._orig_mod.",
    "model._fsdp_wrapped_module._checkpoint_wrapped_module.",
)
HEIGHT, WIDTH = 32, 48
LATENT = (HEIGHT // 8, WIDTH // 8)
TRAINED_POSITIONS, TINY_POSITIONS = 21, 64
EXACT, DIFFERENT = 1e-5, 1e-3

# sigmas as they are stated by the authors and the pruning papers, where they are
SELF_FORCING = (1.0, 0.9375, 0.8333, 0.625)
PAPERS_EDIT = (0.769, 0.729, 0.625)
STATED: dict[str, tuple[tuple[float, ...] | None, tuple[float, ...] | None]] = {
    "self-forcing": (SELF_FORCING, PAPERS_EDIT),
    "causvid": ((1.0, 0.757, 0.522), (0.757, 0.522)),
    "streamdiffusionv2": ((1.0, 0.75, 0.5, 0.25), (0.7, 0.5, 0.4, 0.2)),
    "longlive": (SELF_FORCING, PAPERS_EDIT),
    "rolling-forcing": (None, PAPERS_EDIT),
    "causal-forcing": (SELF_FORCING, PAPERS_EDIT),
    "krea-14b": (SELF_FORCING, PAPERS_EDIT),
}


@dataclass(frozen=True)
class Rules:
    """What a rollout has to keep to.

    Attributes:
        levels: sigma of each denoising pass.
        block, window, sink: in latent frames.
        blocks: how many to run.
        limit: temporal positions in use.
        context: sigma at which finished frames are seen.
    """

    levels: tuple[float, ...]
    block: int
    window: int
    sink: int
    blocks: int
    limit: int
    context: float = 0.0


def rules_for(recipe: Recipe, sigmas: tuple[float, ...], window: int, sink: int) -> Rules:
    """As many blocks as it takes for at least the last two to see less than all before them, and,
    where positions go on past 21, to get there."""
    blocks = max(6, (window + sink) // recipe.block + 2)
    if recipe.positions > TRAINED_POSITIONS:
        blocks = max(blocks, -(-(TRAINED_POSITIONS + 3) // recipe.block))
    limit = max(min(recipe.positions, TINY_POSITIONS), window + sink)
    return Rules(sigmas, recipe.block, window, sink, blocks, limit)


def levels(steps: Sequence[float], warp: bool, shift: float) -> tuple[float, ...]:
    """Sigmas of timesteps of 1000, as Wan's sampler has them."""
    shares = [step / 1000 for step in steps]
    return tuple(shift / (shift + 1 / u - 1) if warp else u for u in shares)


def of_generating(recipe: Recipe) -> Rules:
    sigmas = levels(recipe.steps, recipe.warp, recipe.shift)
    return rules_for(recipe, sigmas, recipe.window, recipe.sink)


def editing_steps(recipe: Recipe) -> tuple[tuple[float, ...], bool]:
    """Timesteps of editing and whether they are warped: the pruning papers' are."""
    if recipe.edit_steps is None:
        return (400, 350, 250), True
    return recipe.edit_steps, recipe.warp


def of_editing(recipe: Recipe) -> Rules:
    sigmas = levels(*editing_steps(recipe), recipe.shift)
    return rules_for(recipe, sigmas, recipe.edit_window, recipe.edit_sink)


@dataclass
class Rollout:
    """Predictions (1, S*N, P) of every pass, context passes included; clean latents by block."""

    passes: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)

    def difference(self, other: Rollout) -> float:
        """The largest difference between two rollouts of the same length."""
        both = [
            *zip(self.passes, other.passes, strict=True),
            *zip(self.latents, other.latents, strict=True),
        ]
        return max((ours - theirs).abs().max().item() for ours, theirs in both)


def prompt() -> Tensor:
    return torch.randn(1, 5, tiny.TEXT_DIM, generator=torch.Generator().manual_seed(5))


def source(rules: Rules) -> list[Tensor]:
    """Random source latents of every block."""
    shape = (rules.blocks, 1, tiny.CHANNELS, rules.block, *LATENT)
    return list(torch.randn(shape, generator=torch.Generator().manual_seed(6)))


def processor(model: Any, rules: Rules, blocks: int) -> Any:
    """The reference's self-attention over so many blocks."""
    grid = Grid(rules.block, LATENT[0] // 2, LATENT[1] // 2)
    if rules.sink and blocks * rules.block > rules.limit:
        return Saturating(model.rope, grid, rules.sink, rules.window, rules.limit)
    return Masked(causal_mask(blocks, rules.block, grid.frame_tokens, rules.sink, rules.window))


def reference(model: Any, rules: Rules, given: Sequence[Tensor] | None = None) -> Rollout:
    """The rollout by definition: every pass is a forward over the whole sequence so far.

    Args:
        model: the stock transformer.
        rules: to keep to.
        given: source latents by block; None makes video from the prompt alone.
    """
    text, generator, made = prompt(), torch.Generator().manual_seed(0), Rollout()
    size = rules.block
    nothing = torch.zeros(1, tiny.CHANNELS, size, *LATENT)
    for number in range(rules.blocks):
        set_self_attention(model, processor(model, rules, number + 1))
        # all noise of a block is drawn first, one pass after the other
        noise = [torch.randn(nothing.shape, generator=generator) for _ in rules.levels]
        x0 = nothing if given is None else given[number]
        for eps, level in zip(noise, rules.levels, strict=True):
            x = (1 - level) * x0 + level * eps
            v = newest(model, rules, made, x, level, text)
            x0 = x - level * v
        newest(model, rules, made, x0, 0.0, text)
        made.latents.append(x0)
    return made


def newest(
    model: Any, rules: Rules, made: Rollout, x: Tensor, level: float, text: Tensor
) -> Tensor:
    """What the model predicts for the newest block, with clean frames before it; noted."""
    sequence = torch.cat([*made.latents, x], 2)
    sigma = torch.full((sequence.shape[2],), rules.context, dtype=torch.float64)
    sigma[-rules.block :] = level
    v = stock(model, sequence, sigma, text)[:, :, -rules.block :]
    made.passes.append(patchify(v, 2))
    return v


@contextmanager
def recorded(pipe: CausalWanPipeline) -> Iterator[Rollout]:
    """What the pipeline's transformer predicts and its autoencoder is given meanwhile."""
    seen, decode = Rollout(), StreamingAutoencoder.decode

    def note_pass(module: Any, inputs: Any, output: Tensor) -> None:
        seen.passes.append(output.clone())

    def noted(self: StreamingAutoencoder, latents: Tensor, changed: Tensor | None = None) -> Tensor:
        seen.latents.append(latents.clone())
        return decode(self, latents, changed)

    hook = pipe.transformer.proj_out.register_forward_hook(note_pass)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamingAutoencoder, "decode", noted)
        yield seen
    hook.remove()


def by_block(made: Rollout, rules: Rules) -> Rollout:
    """A recorded rollout, checked to have all its passes."""
    assert len(made.passes) == rules.blocks * (len(rules.levels) + 1)
    assert len(made.latents) == rules.blocks
    return made


# what was loaded


@dataclass
class Published:
    """A recipe, the model whose weights were published, and the pipeline that was loaded."""

    recipe: Recipe
    model: Any
    pipe: CausalWanPipeline

    @cached_property
    def generated(self) -> Rollout:
        """The pipeline's text-to-video."""
        rules = of_generating(self.recipe)
        seeded = torch.Generator().manual_seed(0)
        stream = self.pipe.generate_stream(
            height=HEIGHT, width=WIDTH, prompt_embeds=prompt(), generator=seeded
        )
        with recorded(self.pipe) as made:
            for _ in range(rules.blocks):
                next(stream)
        return by_block(made, rules)

    @cached_property
    def edited(self) -> Rollout:
        """The pipeline's video-to-video of `source`."""
        rules = of_editing(self.recipe)
        seeded = torch.Generator().manual_seed(0)
        stream = self.pipe.stream(method="full", prompt_embeds=prompt(), generator=seeded)
        with recorded(self.pipe) as made:
            for latents in source(rules):
                stream.edit_block(latents)
        return by_block(made, rules)


Loaded = Callable[[str], Published]
EachRecipe = pytest.mark.parametrize("name", BUILT_IN)


def load(name: str, table: Path) -> CausalWanPipeline:
    """Load a recipe of the file ``table`` by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECIPES_VARIABLE, str(table))
        return load_pipeline(name, device="cpu", vae="full")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in diffusers' format that every recipe starts from.

    Its autoencoder has as few layers as can be: latents are compared, frames are not.
    """
    folder = base_folder(tmp_path_factory.mktemp("base"))
    config = {**tiny.wan_autoencoder().config, "num_res_blocks": 0}
    AutoencoderKLWan.from_config(config).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def loaded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Publishes a recipe and loads it, once; each has weights and, mostly, prefixes of its own."""

    def publish_and_load(name: str) -> Published:
        recipe, number = BUILT_IN[name], list(BUILT_IN).index(name)
        prefix = PREFIXES[number % len(PREFIXES)]
        folder = tmp_path_factory.mktemp(name)
        model, table = publish(folder, recipe, base, prefix=prefix, seed=number)
        return Published(recipe, model, load(name, table))

    return cache(publish_and_load)


# rollouts


@EachRecipe
def test_text_to_video_is_the_stock_model_under_a_mask(name: str, loaded: Loaded) -> None:
    """Rolling Forcing passes the last position with its sink in view: see the top of the file."""
    here = loaded(name)
    rules = of_generating(here.recipe)
    assert evicting(rules) >= 2
    saturating = rules.sink > 0 and rules.blocks * rules.block > rules.limit
    assert saturating == (name == "rolling-forcing")
    assert here.generated.difference(reference(here.model, rules)) <= EXACT


@EachRecipe
def test_video_to_video_is_the_stock_model_under_a_mask(name: str, loaded: Loaded) -> None:
    here = loaded(name)
    rules = of_editing(here.recipe)
    assert evicting(rules) >= 2
    assert rules.blocks * rules.block <= rules.limit
    assert here.edited.difference(reference(here.model, rules, source(rules))) <= EXACT


def evicting(rules: Rules) -> int:
    """How many blocks do not see all that came before them."""
    seen = [visible_frames(n, rules.block, rules.sink, rules.window) for n in range(rules.blocks)]
    return sum(len(frames) < (n + 1) * rules.block for n, frames in enumerate(seen))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("longlive", {"window": 8}),
        ("longlive", {"sink": 2}),
        ("longlive", {"context": 0.1}),
        ("longlive", {"limit": 21}),
        ("self-forcing", {"window": 20}),
        ("rolling-forcing", {"window": 19}),
        ("rolling-forcing", {"sink": 0}),
        ("rolling-forcing", {"limit": 22}),
    ],
)
def test_text_to_video_by_other_rules_differs(
    name: str, changes: dict[str, Any], loaded: Loaded
) -> None:
    """So that the comparison above can fail: every rule counts."""
    here = loaded(name)
    other = replace(of_generating(here.recipe), **changes)
    assert here.generated.difference(reference(here.model, other)) > DIFFERENT


@pytest.mark.parametrize("changes", [{"window": 5}, {"sink": 0}, {"levels": (0.8, 0.7, 0.6)}])
def test_video_to_video_by_other_rules_differs(changes: dict[str, Any], loaded: Loaded) -> None:
    here = loaded("causal-forcing")
    other = replace(of_editing(here.recipe), **changes)
    assert here.edited.difference(reference(here.model, other, source(other))) > DIFFERENT


def test_the_low_rank_update_counts(base: Path, tmp_path: Path) -> None:
    """LongLive's weights are what they should be only with all of its second file."""
    recipe = BUILT_IN["longlive"]
    model, table = publish(tmp_path, recipe, base)
    text = table.read_text()
    assert text.count("lora_scale = 1.0") == 1
    table.write_text(text.replace("lora_scale = 1.0", "lora_scale = 0.0"))
    without = Published(recipe, model, load(recipe.name, table))
    expected = reference(model, of_generating(recipe))
    assert without.generated.difference(expected) > DIFFERENT


# schedules


def scheduled(steps: Sequence[float], warp: bool, shift: float) -> Tensor:
    """What diffusers' scheduler makes of timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift if warp else 1.0)
    scheduler.set_timesteps(sigmas=[step / 1000 for step in steps])
    sigmas = scheduler.sigmas
    assert sigmas[-1] == 0
    return sigmas[:-1]


@EachRecipe
def test_schedules_are_the_schedulers_own_and_as_stated(name: str, loaded: Loaded) -> None:
    recipe, pipe = loaded(name).recipe, loaded(name).pipe
    both = (
        (pipe.generation_settings().sigmas, (recipe.steps, recipe.warp)),
        (pipe.settings().sigmas, editing_steps(recipe)),
    )
    for (sigmas, steps), stated in zip(both, STATED[name], strict=True):
        expected = scheduled(*steps, recipe.shift)
        torch.testing.assert_close(torch.tensor(sigmas), expected, rtol=0, atol=1e-7)
        if stated is not None:
            assert sigmas == pytest.approx(stated, rel=0, abs=5e-4)
    assert pipe.scheduler.config.shift == recipe.shift
