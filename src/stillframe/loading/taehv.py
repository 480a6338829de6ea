"""Published weights of tiny autoencoders (TAEHV, ``taew2_1`` and ``taew2_2``) into
`TinyVideoAutoencoder`.

Widths are read off the tensors, so that siblings of other widths load too. This file does not know
where a weight file comes from.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from stillframe.autoencoders.tiny import TemporalGrow, TinyVideoAutoencoder
from stillframe.backbones.finite import check_model
from stillframe.errors import ModelError
from stillframe.loading.checkpoint import check_tensors, pick_weights, read_file

__all__ = ["TAEW_CONFIG", "TAEW_CONFIGS", "load_taehv"]

TAEW_CONFIG = {
    "latent_channels": 16,
    "encoder_channels": 64,
    "decoder_channels": (256, 128, 64, 64),
    "frames_to_trim": 3,
    "patch_size": 1,
    "spatial_stages": 3,
}
"""`TinyVideoAutoencoder`'s configuration for ``taew2_1``."""

TAEW_CONFIGS = {
    config["latent_channels"]: config
    for config in (TAEW_CONFIG, {**TAEW_CONFIG, "latent_channels": 48, "patch_size": 2})
}
"""Those of ``taew2_1`` and ``taew2_2``, by latent channels."""

# pixel frames that the decoder makes of the first latent, and that stand for nothing: 4 - 1
_TRIM = 3
_FIRST, _INTO, _LAST = "encoder.0.weight", "decoder.1.weight", "decoder.22.weight"
# the first memory block of each stage of the decoder
_STAGES = tuple(f"decoder.{place}.conv.0.weight" for place in (3, 9, 15))


def _widths(state: dict[str, Tensor], what: str) -> tuple[int, tuple[int, ...], int, int]:
    """Encoder width, decoder widths, latent channels and patch size of TAEHV weights."""
    for name in (_FIRST, _INTO, *_STAGES, _LAST):
        if name not in state:
            raise ModelError(f"{what} is no tiny video autoencoder: it has no {name}")
        if state[name].ndim != 4 or 0 in state[name].shape:
            shape = tuple(state[name].shape)
            raise ModelError(f"{what} is no tiny video autoencoder: its {name} is of shape {shape}")
    widths = (*(state[name].shape[0] for name in _STAGES), state[_LAST].shape[1])
    patch = max(1, isqrt(state[_LAST].shape[0] // 3))
    return state[_FIRST].shape[0], widths, state[_INTO].shape[1], patch


def load_taehv(path: Path, dtype: torch.dtype = torch.float32) -> TinyVideoAutoencoder:
    """The autoencoder of a published file.

    Args:
        path: ``taew2_1.safetensors``, ``taew2_2.pth`` or a sibling: tensors named ``encoder.N...``
            and ``decoder.N...``.
        dtype: of the weights.

    Returns:
        the autoencoder on the CPU, in evaluation mode, without gradients. Its latents are those of
        Wan after Wan's own normalisation, so it has no statistics of its own.

    Raises:
        ModelError: the file cannot be read, is not of such an autoencoder, or not finite.
    """
    state = pick_weights(read_file(path), (), path)
    encoder, widths, latents, patch = _widths(state, path.name)
    with torch.device("meta"):
        vae = TinyVideoAutoencoder(
            latent_channels=latents,
            encoder_channels=encoder,
            decoder_channels=widths,
            frames_to_trim=_TRIM,
            patch_size=patch,
        )
    expected = vae.state_dict()
    for name, module in vae.decoder.named_modules():
        if isinstance(module, TemporalGrow):
            # files of models that can also leave out temporal upsampling carry more rows: the
            # frames they make come oldest first, and the last ones are those in use
            key, rows = f"decoder.{name}.conv.weight", module.conv.out_channels
            if key in state and state[key].ndim == 4 and state[key].shape[0] > rows:
                state[key] = state[key][-rows:]
    check_tensors(state, expected, path.name)
    vae.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    check_model(vae, path.name)
    return vae.eval().requires_grad_(False)
