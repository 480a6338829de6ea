"""Classical filters that turn video frames into training targets, one for each style.

Every filter maps ``frames`` (T, 3, H, W), float32 RGB in [0, 1], to the same shape and range. It
looks at each frame alone and holds no randomness, so a still source gives a still target; its reach
is at most a few dozen pixels, so a change in one corner leaves the rest of the target alone. There
is no statistic of the whole frame for the same reason. Looks are smooth and strong rather than
finely textured, because a small autoencoder has to carry them; lines are two to three pixels wide
at a short side of 256.

This file knows nothing of captions, of clips or of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FILTERS", "MOSAIC_BLOCK", "Filter", "apply_style"]

Filter = Callable[[Tensor], Tensor]

MOSAIC_BLOCK = 8
"""Side of a pixel-mosaic block in pixels, on the absolute pixel grid."""


def _rgb(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    """A colour of shape (1, 3, 1, 1) with the device and dtype of ``like``."""
    return torch.tensor([red, green, blue], device=like.device, dtype=like.dtype).view(1, 3, 1, 1)


def _luma(x: Tensor) -> Tensor:
    """Rec. 709 luma (T, 1, H, W) of (T, 3, H, W)."""
    return (x * _rgb(x, 0.2126, 0.7152, 0.0722)).sum(1, keepdim=True)


def _mix(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """``a`` where ``weight`` is 0, ``b`` where it is 1."""
    return a + (b - a) * weight


def _smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """Cubic step from 0 at ``low`` to 1 at ``high``."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _saturate(x: Tensor, amount: float) -> Tensor:
    """Scale the distance from grey by ``amount``; may leave [0, 1]."""
    grey = _luma(x)
    return grey + (x - grey) * amount


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over a (2 radius + 1)² window, over what lies inside the frame at its border."""
    size = 2 * radius + 1
    x = F.avg_pool2d(x, (size, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), 1, (0, radius), count_include_pad=False)


def _blur(x: Tensor, radius: int) -> Tensor:
    """Two box means: a tent, close to a Gaussian of sigma 0.8 (radius + 0.5)."""
    return _box(_box(x, radius), radius)


def _gradient(x: Tensor) -> Tensor:
    """Length of the central-difference gradient, per channel; replicates the border."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = p[..., 1:-1, 2:] - p[..., 1:-1, :-2]
    dy = p[..., 2:, 1:-1] - p[..., :-2, 1:-1]
    # the small constant keeps the root smooth where the frame is flat
    return 0.5 * ((dx * dx + dy * dy + 1e-6).sqrt() - 1e-3)


def _guided(x: Tensor, radius: int, eps: float) -> Tensor:
    """Self-guided filter, per channel (He, Sun and Tang, "Guided Image Filtering", 2010).

    Flattens what varies by less than sqrt(``eps``) within the window and keeps stronger edges.
    """
    mean = _box(x, radius)
    variance = (_box(x * x, radius) - mean * mean).clamp_min(0)
    gain = variance / (variance + eps)
    return _box(gain, radius) * x + _box((1 - gain) * mean, radius)


def _kuwahara(x: Tensor, radius: int, sharpness: float = 4.0) -> Tensor:
    """Soft Kuwahara filter: eight overlapping boxes about each pixel, the calmest weigh most.

    After Kyprianidis, Kang and Döllner, "Image and Video Abstraction by Anisotropic Kuwahara
    Filtering" (2009), with square isotropic sectors so that one box mean serves all eight.
    """
    height, width = x.shape[-2:]
    luma = _luma(x)
    stack = torch.cat([x, luma, luma * luma], 1)
    stack = F.pad(stack, (radius,) * 4, mode="replicate")
    inner = 2 * (radius // 2) + 1
    means = F.avg_pool2d(F.avg_pool2d(stack, (inner, 1), 1), (1, inner), 1)
    span = means.shape[-2] - height  # the last offset; the first is 0
    middle = span // 2
    total, weights = torch.zeros_like(x), torch.zeros_like(luma)
    for top in (0, middle, span):
        for left in (0, middle, span):
            if top == left == middle:
                continue
            box = means[..., top : top + height, left : left + width]
            deviation = (box[:, 4:5] - box[:, 3:4] ** 2).clamp_min(0) + 4e-4
            weight = (4e-4 / deviation) ** (sharpness / 2)
            total = total + weight * box[:, :3]
            weights = weights + weight
    return total / weights


def _lines(x: Tensor, low: float, high: float, radius: int = 1) -> Tensor:
    """Outlines (T, 1, H, W) in [0, 1]: soft-thresholded gradient of the smoothed colours.

    Works on square roots of intensity, so that shadows get lines as well as lights do.
    """
    root = (_blur(_guided(x, 2, 2e-3), radius).clamp_min(0) + 0.01).sqrt()
    strength = _gradient(root).amax(1, keepdim=True)
    return _smoothstep(strength, low, high)


def _photo(x: Tensor) -> Tensor:
    """The source itself."""
    return x


def _oil(x: Tensor) -> Tensor:
    """Flat dabs of rich colour."""
    dabs = _kuwahara(_kuwahara(_box(x, 1), 4), 3)
    rich = _saturate(dabs, 1.5)
    return _mix(rich, rich * rich * (3 - 2 * rich), 0.45)


def _quantise(luma: Tensor, levels: int, softness: float) -> Tensor:
    """Posterise (T, 1, H, W) to ``levels`` + 1 tones with smooth risers between them."""
    scaled = luma * levels
    floor = torch.floor(scaled)
    return (floor + _smoothstep(scaled - floor, 0.5 - softness, 0.5 + softness)) / levels


def _cartoon(x: Tensor) -> Tensor:
    """Flat bright areas in few tones, with dark outlines."""
    flat = _kuwahara(_guided(_box(x, 1), 3, 4e-3), 3)
    luma = _luma(flat).clamp(0, 1)
    tone = _quantise(luma**0.8, 5, 0.35)
    bright = _saturate(flat * ((tone + 0.04) / (luma + 0.04)), 1.6)
    return _mix(bright, _rgb(x, 0.05, 0.04, 0.08), 0.9 * _lines(x, 0.025, 0.075))


def _watercolour(x: Tensor) -> Tensor:
    """Pale washes on white paper, pigment gathering at their edges."""
    wash = _blur(_kuwahara(_box(x, 1), 4), 1)
    light = _saturate(wash, 1.6).clamp(0, 1) ** 0.7
    pale = 1 - 0.8 * (1 - light)
    rim = _smoothstep(_gradient(wash.sqrt()).amax(1, keepdim=True), 0.015, 0.08)
    return pale * (1 - 0.45 * rim * (1.15 - wash))


def _pencil(x: Tensor) -> Tensor:
    """Graphite on white paper: colour dodge by the blurred inverse, plus soft shading."""
    luma = _box(_guided(_luma(x), 2, 1e-3), 1)
    around = _blur(luma, 5)
    dodge = (luma + 0.04) / (around + 0.04)
    stroke = _smoothstep(dodge, 0.5, 1.0)
    shade = 0.7 + 0.3 * _smoothstep(luma, 0.0, 0.7)
    return (0.14 + 0.84 * stroke * shade).expand_as(x)


def _sepia(x: Tensor) -> Tensor:
    """Brown-toned print with softened contrast."""
    tone = _luma(x)
    dark, light = _rgb(x, 0.13, 0.07, 0.03), _rgb(x, 1.0, 0.91, 0.74)
    return _mix(dark, light, tone ** _rgb(x, 0.85, 1.0, 1.2))


def _noir(x: Tensor) -> Tensor:
    """Black and white with deep shadows and hard light."""
    luma = _luma(x)
    return _smoothstep(luma, 0.0, 0.92).expand_as(x)


def _night(x: Tensor) -> Tensor:
    """Moonlight: dark and blue, the brightest areas kept warm like lamps."""
    luma = _luma(x)
    moon = _saturate(x, 0.45).clamp(0, 1) * _rgb(x, 0.2, 0.34, 0.62) + _rgb(x, 0.01, 0.015, 0.05)
    lamp = _blur(_smoothstep(luma, 0.8, 1.02), 2)
    return _mix(moon, x * _rgb(x, 1.0, 0.82, 0.5), 0.75 * lamp)


def _golden_hour(x: Tensor) -> Tensor:
    """Low sun: warm lights, brown-violet shadows and a soft glow."""
    luma = _luma(x)
    warm = _mix(x * _rgb(x, 1.0, 0.75, 0.6), x * _rgb(x, 1.15, 0.9, 0.55), luma)
    warm = warm + _rgb(x, 0.06, 0.025, 0.03)
    glow = _blur(_smoothstep(luma, 0.4, 1.0) * luma, 8) * _rgb(x, 1.0, 0.7, 0.3)
    return 1 - (1 - warm.clamp(0, 1)) * (1 - 0.35 * glow)


def _neon(x: Tensor) -> Tensor:
    """Glowing tubes along the outlines, in the source's own hues, on near black."""
    smooth = _blur(_guided(x, 3, 2e-3), 2)
    vivid = _saturate(smooth, 3.0)
    vivid = vivid - vivid.amin(1, keepdim=True)
    chroma = vivid.amax(1, keepdim=True)
    hue = vivid / (chroma + 1e-3)
    # grey areas have no hue to keep: violet in the shadows, cyan in the lights
    luma = _smoothstep(_luma(smooth), 0.2, 0.7)
    spare = _mix(_rgb(x, 0.75, 0.15, 1.0), _rgb(x, 0.1, 0.85, 1.0), luma)
    hue = _mix(spare, hue, _smoothstep(chroma, 0.1, 0.4))
    line = _lines(x, 0.015, 0.07)
    glow = _blur(line, 4)
    return _rgb(x, 0.02, 0.01, 0.05) + hue * (line + 0.7 * glow) + 0.25 * line * line


def _mosaic(x: Tensor) -> Tensor:
    """Blocks of one colour each, slightly vivid."""
    height, width = x.shape[-2:]
    blocks = F.avg_pool2d(x, MOSAIC_BLOCK, ceil_mode=True)
    blocks = _saturate(blocks, 1.35)
    big = blocks.repeat_interleave(MOSAIC_BLOCK, -2).repeat_interleave(MOSAIC_BLOCK, -1)
    return big[..., :height, :width]


def _blueprint(x: Tensor) -> Tensor:
    """White lines on blue paper, with a faint tint of light and shade."""
    smooth = _blur(_luma(x), 3)
    paper = _rgb(x, 0.04, 0.15, 0.42) + smooth * _rgb(x, 0.05, 0.12, 0.2)
    return _mix(paper, _rgb(x, 0.92, 0.96, 1.0), 0.95 * _lines(x, 0.015, 0.07))


FILTERS: dict[str, Filter] = {
    "photo": _photo,
    "oil": _oil,
    "cartoon": _cartoon,
    "watercolour": _watercolour,
    "pencil": _pencil,
    "sepia": _sepia,
    "noir": _noir,
    "night": _night,
    "golden-hour": _golden_hour,
    "neon": _neon,
    "mosaic": _mosaic,
    "blueprint": _blueprint,
}
"""Style name -> filter. The names are those of ``captions.PARAPHRASES``."""


def apply_style(name: str, frames: Tensor) -> Tensor:
    """Filter ``frames`` (T, 3, H, W), RGB in [0, 1], into the style ``name``: same shape and range.

    Raises:
        ValueError: ``name`` is not in ``FILTERS``, or ``frames`` is not (T, 3, H, W).
    """
    if name not in FILTERS:
        raise ValueError(f"unknown style {name!r}; known: {', '.join(FILTERS)}")
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames must be (T, 3, H, W), got {tuple(frames.shape)}")
    return FILTERS[name](frames).clamp(0, 1)
