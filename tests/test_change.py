"""Change detection against loops over single patches, and its promises: causal, bounded, local."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from stillframe.detection.latents import CausalMask, MaskShape, patch_distance
from stillframe.tokens.grid import Grid
from stillframe.tokens.restore import predecessor_rows, restore
from stillframe.tokens.source import SourceBlock

H, W, P = 8, 12, 16
N = H * W
TAU1, TAU2 = 0.15, 0.30

Maps = list[list[float]]


def run(
    tokens: Tensor,
    size: int,
    tau1: float = TAU1,
    tau2: float = TAU2,
    reference: Tensor | None = None,
    shape: MaskShape | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks of a stream (B, F, N, P) in blocks of ``size`` after a whole first frame.

    Returns keep (B, F-1, N) and, for every place, the source of what is shown, (B, F-1, N, P).
    With ``reference``, every block is compared with that.
    """
    detector = CausalMask(tau1, tau2, shape=shape)
    recomputed, previous = tokens[:, 0], tokens[:, 0]
    masks, shown = [], []
    for start in range(1, tokens.shape[1], size):
        block = tokens[:, start : start + size]
        compared = recomputed if reference is None else reference
        grid = Grid(block.shape[1], H, W)
        keep = detector(SourceBlock(block, previous, compared, grid))
        assert keep.shape == (tokens.shape[0], block.shape[1], H, W)
        rows = predecessor_rows(keep.flatten(2))
        display = restore(block.flatten(1, 2), recomputed, rows).view_as(block)
        masks.append(keep.flatten(2))
        shown.append(display)
        previous, recomputed = block[:, -1], display[:, -1]
    return torch.cat(masks, 1), torch.cat(shown, 1)


def motion(frames: int, batch: int = 1, seed: int = 0, violence: float = 1.0) -> Tensor:
    """A still scene with sensor noise, a wandering blob, drifting patches and short flashes."""
    g = torch.Generator().manual_seed(seed)
    scene = torch.randn(batch, 1, N, P, generator=g).repeat(1, frames, 1, 1)
    scene += 0.02 * torch.randn(scene.shape, generator=g)
    drift = 0.03 * torch.randn(batch, frames, N // 4, P, generator=g)
    scene[:, :, ::4] += drift.cumsum(1)
    for t in range(1, frames):
        top, left = (t // 2 + seed) % 6, (t // 3) % 2
        area = scene[:, t].view(batch, H, W, P)[:, top : top + 3, left : left + 3]
        area += violence * torch.randn(area.shape, generator=g)
    flashes = torch.rand(batch, frames, N, 1, generator=g) < 0.005
    return scene + violence * flashes * torch.randn(scene.shape, generator=g)


# the slow twin, frame by frame and patch by patch


def slow_distance(a: Tensor, b: Tensor, trim: float = 0.2) -> float:
    ordered = sorted(abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    drop = int(trim * len(ordered))
    middle = ordered[drop : len(ordered) - drop]
    return sum(middle) / len(middle)


def slow_distances(a: Sequence[Tensor] | Tensor, b: Sequence[Tensor] | Tensor) -> Maps:
    return each(lambda i, j: slow_distance(a[i * W + j], b[i * W + j]))


def look_back(history: Sequence[Maps], age: int) -> Maps:
    """The map ``age`` frames ago; before the first one, the first."""
    return history[max(len(history) - 1 - age, 0)]


def near(image: Maps, i: int, j: int, reach: int) -> list[float]:
    """Values around (i, j), the picture's edge repeated."""
    around = range(-reach, reach + 1)
    rows = [min(max(i + di, 0), H - 1) for di in around]
    columns = [min(max(j + dj, 0), W - 1) for dj in around]
    return [image[y][x] for y in rows for x in columns]


def each(value: Callable[[int, int], float]) -> Maps:
    return [[float(value(i, j)) for j in range(W)] for i in range(H)]


def slow_median(history: Sequence[Maps], memory: int = 3) -> Maps:
    def middle(i: int, j: int) -> float:
        seen = [v for age in range(memory) for v in near(look_back(history, age), i, j, 1)]
        return sorted(seen)[(len(seen) - 1) // 2]

    return each(middle)


def slow_gauss(history: Sequence[Maps], memory: int = 3) -> Maps:
    def bell(x: float) -> float:
        return float(torch.exp(torch.tensor(-(x**2) / (2 * 1.5**2))))

    def smooth(i: int, j: int) -> float:
        total = weight = 0.0
        for age in range(memory):
            values = near(look_back(history, age), i, j, 1)
            offsets = [(di, dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
            for value, (di, dj) in zip(values, offsets, strict=True):
                w = bell(age) * bell(di) * bell(dj)
                total, weight = total + w * value, weight + w
        return total / weight

    return each(smooth)


def slow_cleaned(image: Maps, cleaning: str) -> Maps:
    def grow(x: Maps) -> Maps:
        return each(lambda i, j: max(near(x, i, j, 1)))

    def shrink(x: Maps) -> Maps:
        return each(lambda i, j: min(near(x, i, j, 1)))

    steps = {
        "none": lambda x: x,
        "open": lambda x: grow(shrink(x)),
        "close": lambda x: shrink(grow(x)),
        "open-close": lambda x: shrink(grow(grow(shrink(x)))),
        "close-open": lambda x: grow(shrink(shrink(grow(x)))),
    }
    return steps[cleaning](image)


def slow_smoothed(raw: Sequence[Maps], medians: list[Maps], shape: MaskShape) -> Maps:
    """The newest of some distance maps, smoothed; medians of the earlier ones are kept."""
    wants = {"both": ("median", "gaussian")}.get(shape.smoothing, (shape.smoothing,))
    medians.append(slow_median(raw, shape.memory) if "median" in wants else raw[-1])
    return slow_gauss(medians, shape.memory) if "gaussian" in wants else medians[-1]


def slow_masks(tokens: Tensor, size: int, shape: MaskShape) -> Tensor:
    """What `run` returns as keep, for one stream (F, N, P)."""
    frames, side = shape.dilation
    limit = TAU2 * shape.bound
    history: dict[str, list[Maps]] = {k: [] for k in ("short", "long", "ms", "ml", "moved", "open")}
    start_reference = list(tokens[0])
    shown = list(tokens[0])
    masks = []
    for t in range(1, len(tokens)):
        if (t - 1) % size == 0:
            start_reference = list(shown)
        now = tokens[t]
        history["short"].append(slow_distances(now, tokens[t - 1]))
        history["long"].append(slow_distances(now, start_reference))
        short = slow_smoothed(history["short"], history["ms"], shape)
        long = slow_smoothed(history["long"], history["ml"], shape)

        def changed(i: int, j: int, short: Maps = short, long: Maps = long) -> bool:
            return short[i][j] >= TAU1 or long[i][j] >= TAU2

        history["moved"].append(each(changed))
        voted = history["moved"][-1]
        if shape.majority:
            voted = slow_median(history["moved"], shape.memory)
        history["open"].append(slow_cleaned(voted, shape.cleaning))
        keep = torch.zeros(N, dtype=torch.bool)
        for p in range(N):
            i, j = divmod(p, W)
            recent = [look_back(history["open"], age) for age in range(frames)]
            spread = [v for image in recent for v in near(image, i, j, side // 2)]
            stale = slow_distance(now[p], start_reference[p]) >= limit
            stale |= slow_distance(now[p], shown[p]) >= limit
            keep[p] = max(spread) > 0.5 or stale
            if keep[p]:
                shown[p] = now[p]
        masks.append(keep)
    return torch.stack(masks)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [
        MaskShape(),
        MaskShape("none", 1, False, "none", (1, 1)),
        MaskShape("gaussian", 2, True, "close", (2, 3)),
        MaskShape("median", 1, True, "open", (3, 1), 1.5),
        MaskShape("both", 2, False, "close-open", (1, 5), float("inf")),
    ],
    ids=lambda shape: f"{shape.smoothing}-{shape.cleaning}",
)
def test_masks_equal_loops_over_single_patches(size: int, shape: MaskShape) -> None:
    tokens = motion(10)
    keep, _ = run(tokens, size, shape=shape)
    assert 0.1 < keep.float().mean() < 0.9
    assert torch.equal(keep[0], slow_masks(tokens[0], size, shape))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"smoothing": "mean"}, "got 'mean' and 'open-close'"),
        ({"cleaning": "erode"}, "got 'both' and 'erode'"),
        ({"memory": 4}, "got 4 and 3 frames and a side of 5"),
        ({"dilation": (0, 3)}, "got 3 and 0 frames and a side of 3"),
        ({"dilation": (1, 2)}, "got 3 and 1 frames and a side of 2"),
        ({"bound": 0.5}, "bound must be at least 1, got 0.5"),
    ],
)
def test_shapes_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MaskShape(**given)


@pytest.mark.parametrize("trim", [0.0, 0.2, 0.49])
@pytest.mark.parametrize("size", [5, 16, 64])
def test_distance_is_a_trimmed_mean(size: int, trim: float) -> None:
    a, b = torch.randn(2, 3, 4, size)
    distance = patch_distance(a, b, trim)
    for i in range(3):
        for j in range(4):
            expected = slow_distance(a[i, j], b[i, j], trim)
            assert distance[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_distance_ignores_a_few_hot_channels() -> None:
    a = torch.zeros(64)
    hot = a.clone()
    hot[:12] = 100.0
    assert patch_distance(a, hot) == 0
    assert patch_distance(a, hot, trim=0.0) > 10


@pytest.mark.parametrize("size", [1, 3, 4])
def test_no_mask_depends_on_a_later_frame(size: int) -> None:
    tokens = motion(25)
    keep, _ = run(tokens, size)
    for t in (1, 2, 7, 11, 24):
        other = tokens.clone()
        other[:, t:] = torch.randn(other[:, t:].shape)
        changed, _ = run(other, size)
        assert torch.equal(changed[:, : t - 1], keep[:, : t - 1])
        assert not torch.equal(changed[:, t - 1 :], keep[:, t - 1 :])


@pytest.mark.parametrize("size", [2, 3, 6, 24])
def test_block_size_does_not_matter_to_the_short_term(size: int) -> None:
    tokens = motion(25, violence=0.5)
    one, _ = run(tokens, 1, tau2=float("inf"))
    assert 0.1 < one.float().mean() < 0.9
    assert torch.equal(run(tokens, size, tau2=float("inf"))[0], one)


@pytest.mark.parametrize("size", [2, 3, 6, 24])
def test_block_size_does_not_matter_to_the_long_term_at_the_same_reference(size: int) -> None:
    tokens = torch.randn(1, 1, N, P).repeat(1, 25, 1, 1)
    tokens.view(1, 25, H, W, P)[:, 9:, 1:6, 2:9] += 2 * torch.randn(1, 16, 5, 7, P)
    one, _ = run(tokens, 1, tau1=float("inf"), reference=tokens[:, 0])
    assert 0.1 < one.float().mean() < 0.9
    same, _ = run(tokens, size, tau1=float("inf"), reference=tokens[:, 0])
    assert torch.equal(same, one)


def test_batch_rows_do_not_see_each_other() -> None:
    both = torch.cat([motion(13, seed=1), motion(13, seed=2)])
    keep, _ = run(both, 3)
    assert not torch.equal(keep[0], keep[1])
    for row in range(2):
        assert torch.equal(run(both[row : row + 1], 3)[0][0], keep[row])


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_pruned_place_shows_is_within_tau2_of_its_source(seed: int, size: int) -> None:
    """Every single patch at every frame, in the middle of blocks too, whatever the filters say."""
    tokens = motion(41, batch=2, seed=seed)
    keep, shown = run(tokens, size)
    distance = patch_distance(tokens[:, 1:], shown)
    assert (distance[~keep] < TAU2).all()
    assert distance[~keep].max() > 0.5 * TAU2
    assert (distance[keep] == 0).all()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_pruned_patch_is_within_tau2_of_the_blocks_reference(size: int) -> None:
    tokens = motion(41, seed=5)
    keep, shown = run(tokens, size)
    for start in range(size, 40, size):
        reference = shown[:, start - 1 : start]
        block = slice(start, start + size)
        distance = patch_distance(tokens[:, 1:][:, block], reference)
        assert (distance[~keep[:, block]] < TAU2).all()


def test_an_unchanged_scene_keeps_nothing() -> None:
    still = torch.randn(2, 1, N, P).repeat(1, 31, 1, 1)
    assert not run(still, 3)[0].any()


def test_faint_noise_keeps_nothing() -> None:
    still = torch.randn(1, 1, N, P) + 0.03 * torch.randn(1, 31, N, P)
    assert not run(still, 3)[0].any()


@pytest.mark.parametrize("place", [0, W - 1, 20, N - 1])
def test_a_single_strongly_changed_patch_is_kept(place: int) -> None:
    tokens = torch.randn(1, 1, N, P).repeat(1, 13, 1, 1)
    tokens[:, 8:, place] += 1.0
    keep, _ = run(tokens, 3)
    assert keep[0, 7, place]
    assert keep[0].nonzero()[:, 1].unique().tolist() == [place]
    assert not keep[:, :7].any()


def test_a_flash_of_one_patch_for_one_frame_does_not_stay() -> None:
    """The frame after the flash, in the same block, has to be computed again."""
    tokens = torch.randn(1, 1, N, P).repeat(1, 13, 1, 1)
    tokens[:, 5, 20] += 1.0
    keep, shown = run(tokens, 3)
    assert keep[0, :, 20].nonzero().flatten().tolist() == [4, 5]
    assert torch.equal(shown, tokens[:, 1:])


@pytest.mark.parametrize("size", [1, 3])
def test_a_slow_fade_is_caught(size: int) -> None:
    """0.01 a frame is far below the short-term threshold; the shown scene still follows."""
    frames = 201
    fade = torch.linspace(0, 0.01 * (frames - 1), frames).view(1, -1, 1, 1)
    tokens = torch.randn(1, 1, N, P) + fade
    keep, shown = run(tokens, size)
    assert patch_distance(tokens[:, 1:], shown).max() < TAU2
    assert 0 < keep.float().mean() < 0.3


def test_thresholds_do_what_they_say() -> None:
    tokens = motion(13)
    assert run(tokens, 3, tau1=0.0)[0].all()
    shares = [run(tokens, 3, t, 2 * t)[0].float().mean() for t in (0.02, 0.1, 0.3, 1.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_no_value_is_read_back_from_the_device() -> None:
    """The meta device has no values: anything that reads one raises."""
    detector = CausalMask(TAU1, TAU2)
    for _ in range(3):
        block = torch.empty(2, 3, N, P, device="meta")
        keep = detector(SourceBlock(block, block[:, 0], block[:, 0], Grid(3, H, W)))
        assert keep.device.type == "meta"
        assert keep.shape == (2, 3, H, W)
        assert keep.dtype == torch.bool
