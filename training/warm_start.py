"""Where the transformer's training starts: it returns the source, and knows what a prompt names.

Joint training from random weights spends minutes on finding out that the source is the first guess
of the edit, and longer on finding out that a prompt matters. Both can be written down: the source
as an isometry through the residual stream, the prompt as a few seconds of classification.

This file knows nothing of pixels, latents or noise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from training.loop import say

__all__ = ["start_from_source", "teach_prompts"]


@torch.no_grad()
def start_from_source(transformer: WanTransformer3DModel) -> None:
    """Initialise a source-conditioned transformer to predict about ``noise - source``.

    The patch embedding becomes an isometry of the noisy and the source patch, and the output
    projection reads one minus the other back. What would change them at random in between begins
    as nothing: the time embedding, which scales the last layer norm, and what the later blocks read
    in the prompt (the first one's is `teach_prompts`'s). Gates are small in Wan's own
    initialisation.

    Raises:
        ValueError: the two patches have more numbers than the model is wide.
    """
    weight = transformer.patch_embedding.weight  # inner, 2C, 1, p, p
    inner, channels = weight.shape[:2]
    inputs = weight[0].numel()
    if inputs > inner:
        raise ValueError(
            f"a noisy and a source patch of {inputs // 2} numbers each do not fit into "
            f"a width of {inner}"
        )
    isometry = torch.linalg.qr(torch.randn(inner, inputs)).Q.to(weight)  # inner x inputs
    weight.copy_(isometry.view_as(weight))
    transformer.patch_embedding.bias.zero_()
    # rows of the isometry as (channel, p, p) -> output order (p, p, channel)
    maps = isometry.view(inner, channels, -1).permute(2, 1, 0)  # pp, 2C, inner
    half = channels // 2
    # a token's layer norm divides by its standard deviation, about sqrt(inputs / inner)
    scale = (inputs / inner) ** 0.5
    transformer.proj_out.weight.copy_(scale * (maps[:, :half] - maps[:, half:]).flatten(0, 1))
    transformer.proj_out.bias.zero_()
    transformer.scale_shift_table.zero_()
    embedder: Any = transformer.condition_embedder
    silent = [embedder.time_embedder.linear_2]
    silent += [block.attn2.to_out[0] for block in list(transformer.blocks)[1:]]
    for layer in silent:
        layer.weight.zero_()
        layer.bias.zero_()


def teach_prompts(
    transformer: WanTransformer3DModel,
    encode: Callable[[Sequence[int]], Tensor],
    parameters: Sequence[nn.Parameter],
    styles: int,
    steps: int = 400,
) -> float:
    """Teach the text encoder, the text projection and the first cross-attention to name a style.

    The first ``styles`` features of the cross-attention's output learn to be the style's indicator.

    Args:
        transformer: with random weights.
        encode: style numbers -> encoded captions (B, L, E), differentiable.
        parameters: of the text encoder.
        styles: how many there are.
        steps: of 48 captions each.

    Returns:
        the share of the last captions that are named right.
    """
    block: Any = transformer.blocks[0]
    attention, projection = block.attn2, transformer.condition_embedder.text_embedder
    nn.init.zeros_(attention.to_q.weight)  # the same question from every token
    nn.init.normal_(attention.to_q.bias)
    trained = [*parameters, *projection.parameters(), *attention.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng, right = random.Random(0), 0.0
    device = transformer.device
    for step in range(steps):
        drawn = rng.choices(range(styles), k=48)
        query = torch.zeros(48, 1, attention.to_q.in_features, device=device)
        named = attention(query, projection(encode(drawn)), None, None)[:, 0, :styles]
        wanted = torch.tensor(drawn, device=device)
        loss = F.mse_loss(named, F.one_hot(wanted, styles).float())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        attention.to_q.weight.grad = None
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            right = (named.argmax(1) == wanted).float().mean().item()
            say(f"prompts step {step + 1}: error {loss.item():.4f}, right {right:.2f}")
    return right
