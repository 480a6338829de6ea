"""What published models do otherwise than Self Forcing: kept in folders, refused where it cannot
be, and what a new prompt does to keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from tests import tiny
from tests.published import base_folder, publish
from tests.rollouts import LATENT, prompt
from tests.tiny import set_self_attention, stock, stock_rotate, stock_table
from torch import Tensor

from stillframe.autoencoders.streaming import latent_statistics
from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.engine.settings import StreamSettings
from stillframe.engine.stream import EditStream
from stillframe.errors import ModelError
from stillframe.evaluation.layers import LatentRecorder
from stillframe.loading.assemble import Source, Task, stream_settings
from stillframe.loading.checkpoint import pick_weights
from stillframe.loading.convert import convert_model
from stillframe.loading.load import load_pipeline
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.methods import find_method
from stillframe.tokens.grid import Grid
from stillframe.tokens.schedule import Pass, nearest_sigma

BUILT_IN = load_recipes()
SPECIAL = ["streamdiffusionv2", "causal-forcing-2step", "rolling-forcing", "reward-forcing"]
SPECIAL += ["longlive", "krea-14b"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in diffusers' format that every recipe starts from."""
    return base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def self_forcing(base: Path, tmp_path_factory: pytest.TempPathFactory) -> StreamSettings:
    """What Self Forcing generates with, which has none of the traits."""
    _, table = publish(tmp_path_factory.mktemp("plain"), BUILT_IN["self-forcing"], base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RECIPES_VARIABLE, str(table))
        return load_pipeline("self-forcing", device="cpu", vae="full").generation_settings()


@pytest.mark.parametrize("name", SPECIAL)
def test_a_converted_folder_runs_as_its_recipe_does(
    name: str,
    base: Path,
    self_forcing: StreamSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not as Self Forcing does."""
    _, table = publish(tmp_path, BUILT_IN[name], base)
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    folder = convert_model(name, tmp_path / "out", vae="full", dtype="float32")
    own, kept = (
        load_pipeline(x, device="cpu", vae=v) for x, v in ((name, "full"), (str(folder), None))
    )
    assert kept.settings() == own.settings()
    assert kept.generation_settings() == own.generation_settings()
    assert own.generation_settings() != self_forcing


def test_a_plan_counts_the_blocks_of_its_task() -> None:
    """StreamDiffusionV2 denoises one frame of a video at a time, and three from a prompt."""
    recipe = BUILT_IN["streamdiffusionv2"]
    source = Source(recipe.name, recipe.base, recipe, "full")
    editing, making = (stream_settings(source, Task(generate=g)) for g in (False, True))
    assert (editing.block_frames, editing.window_frames, editing.sink_frames) == (1, 3, 3)
    assert (making.block_frames, making.window_frames, making.sink_frames) == (3, 18, 3)


def test_weights_are_found_flat_or_under_their_entry() -> None:
    """Reward Forcing's file has been seen both ways."""
    keys, tensors = BUILT_IN["reward-forcing"].keys, {"blocks.0.ffn.0.bias": torch.ones(2)}
    for content in (tensors, {"generator": tensors}, {"generator": {}, "generator_ema": tensors}):
        assert pick_weights(content, keys, Path("x.pt")) == tensors
    with pytest.raises(ModelError, match="holds no named tensors"):
        pick_weights({}, keys, Path("x.pt"))


def test_the_nearest_level_is_on_the_grid_and_none_is_nearer() -> None:
    for shift in (1.0, 5.0, 8.0):
        grid = [shift * i / (1000 + (shift - 1) * i) for i in range(1, 1001)]
        for told in (1.0, 0.757, 0.522, 0.31415, 0.0):
            found = nearest_sigma(told, shift)
            assert found == pytest.approx(min(grid, key=lambda x: abs(x - told)), abs=1e-12)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"told": (0.7,)}, "a model is told 1 levels in 2 passes"),
        ({"source_noise": 1.2}, r"noised to a level in \(0, 1\], got 1\.2"),
        ({"first": (Pass(1, 1, 1),)}, "a first block has at least 2 passes, got 1"),
        ({"sink_average": -0.1, "sink_frames": 3}, r"a share in \[0, 1\] of itself, got -0\.1"),
        ({"context_noise": 1.0}, r"noised to a level in \[0, 1\), got 1\.0"),
        ({"context_noise": 0.1, "recompute_context": True}, "clean, and this one is noised to 0.1"),
        ({"sink_average": 0.9}, "has the 3 frames of a block, got 1"),
        ({"sink_average": 0.9, "sink_frames": 3, "window_frames": 5}, "window of 6 frames, got 5"),
        ({"sink_average": 0.9, "sink_frames": 3, "cache": "fp8"}, "0.9 of itself cannot be kept"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StreamSettings((0.7, 0.5), **fields)


def test_latents_are_those_that_the_autoencoder_normalises() -> None:
    """The published tiny one has Wan 2.1's latents, whose spread is 2.3 on average."""
    wan = tiny.wan_autoencoder()
    assert latent_statistics(wan) == (
        tuple(wan.config.latents_mean),
        tuple(wan.config.latents_std),
    )
    published = TinyVideoAutoencoder(latent_channels=16, decoder_channels=(8, 8, 8, 8))
    mean, deviation = latent_statistics(published)
    assert (mean[0], deviation[0]) == (-0.7571, 2.8184)
    assert sum(x**2 for x in deviation) / 16 == pytest.approx(2.3**2, rel=0.1)
    other = TinyVideoAutoencoder(latent_channels=8, decoder_channels=(8, 8, 8, 8))
    with pytest.raises(ModelError, match=r"8 latent channels does not say .* has 16$"):
        latent_statistics(other)


# another prompt


class _AfterSink:
    """Self-attention of blocks that see the sink as it was before, and those of them before.

    Args:
        rope: the stock model's.
        grid: of a block.
        starts: position of the first frame.
        sink: rotated keys and values of the sink by layer; None: it notes those of the sequence.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(
        self, rope: Any, grid: Grid, starts: int, sink: dict[Any, tuple[Tensor, Tensor]] | None
    ) -> None:
        self.rope, self.grid, self.starts, self.sink = rope, grid, starts, sink
        self.noted: dict[Any, tuple[Tensor, Tensor]] = {}

    def __call__(self, attn: Any, hidden_states: Tensor, *rest: Any) -> Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        v = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        at = range(self.starts, self.starts + q.shape[1] // self.grid.frame_tokens)
        q, k = (stock_rotate(x, stock_table(self.rope, at, self.grid)) for x in (q, k))
        self.noted[attn], before = (k, v), 0
        if self.sink is not None:
            keys, values = self.sink[attn]
            k, v, before = torch.cat([keys, k], 1), torch.cat([values, v], 1), keys.shape[1]
        out = []
        for end in range(self.grid.tokens, q.shape[1] + 1, self.grid.tokens):
            seen = q[:, end - self.grid.tokens : end], k[:, : before + end], v[:, : before + end]
            qh, kh, vh = (x.transpose(1, 2) for x in seen)
            out.append(F.scaled_dot_product_attention(qh, kh, vh).transpose(1, 2))
        return attn.to_out[0](torch.cat(out, 1).flatten(2))


def _changing(prompts: list[Tensor], *, recompute: bool) -> list[Tensor]:
    """Latents of five blocks from nothing but prompts, the second one for the last block."""
    pipe = tiny.pipeline()
    settings = StreamSettings((1.0,), "sdedit", 3, 3, 9, 64, recompute_context=recompute)
    recorder, first, second = LatentRecorder(4), *(pipe.text(None, x) for x in prompts)
    generator = torch.Generator().manual_seed(0)
    full = find_method("full")()
    stream = EditStream(pipe.denoiser, cast(Any, recorder), first, full, settings, generator)
    for block in range(5):
        if block == 4:
            stream.set_text(second)
        stream.edit_block(torch.zeros(1, tiny.CHANNELS, 3, *LATENT))
    return recorder.blocks


def test_another_prompt_computes_keys_and_values_of_the_window_anew() -> None:
    """As LongLive: what follows sees the frames of the window as the new prompt has them, and the
    sink as it was."""
    old, new = prompt(5), prompt(6)
    made = _changing([old, new], recompute=True)
    model, grid = tiny.transformer(), Grid(3, LATENT[0] // 2, LATENT[1] // 2)
    sink = _AfterSink(model.rope, grid, 0, None)
    set_self_attention(model, sink)
    stock(model, made[0], torch.zeros(3, dtype=torch.float64), old)
    set_self_attention(model, _AfterSink(model.rope, grid, 6, sink.noted))
    # the noise of the fifth block
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(made[0].shape, generator=generator) for _ in range(5)][-1]
    sigma = torch.tensor([0.0] * 6 + [1.0] * 3, dtype=torch.float64)
    v = stock(model, torch.cat([*made[2:4], noise], 2), sigma, new)[:, :, -3:]
    torch.testing.assert_close(made[4], noise - v, rtol=0, atol=1e-5)
    kept = _changing([old, new], recompute=False)
    torch.testing.assert_close(kept[:4], made[:4], rtol=0, atol=0)
    assert (kept[4] - made[4]).abs().max() > 1e-3
