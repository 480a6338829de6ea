"""What rate control, two passes and the guard do on real clips: the figures of docs/control.md.

    python -m benchmarks.rates hold CLIP... [--random-1.3b] [--seconds 300] [--out FOLDER]
    python -m benchmarks.rates quality CLIP... [--frames 96]
    python -m benchmarks.rates guard CLIP... [--frames 120]

``hold`` joins the clips with hard cuts, again and again, and edits that at several targets in turn,
in one stream: multiples of the dense speed measured first on the same clips. ``quality`` compares
fixed thresholds with a constant rate and with two passes of the same mean kept share. ``guard``
compares the estimated error of reused patches with the true one, known from a dense edit with the
same noise. Rows go to CSV files, the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import torch
from torch import Tensor

from benchmarks import say
from benchmarks.plots import Line, draw_lines
from benchmarks.rates_bench import Bench, Run, psnr, write_rows
from stillframe.controls import Controls, Cuts, Forecast, Guard, Rate, Survey
from stillframe.controls.guard import Watch
from stillframe.controls.rate import RateController
from stillframe.methods import Method, find_method
from stillframe.methods.prune import InterFramePruning
from stillframe.tokens.grid import patchify
from stillframe.tokens.restore import predecessor_rows, restore

_ROUNDING = 1e-4  # of a value as it is printed
TARGETS = (1.1, 1.5, 2.0, 2.5, 3.0, 1.5, 2.5, 1.1)
WARM = 3  # blocks of a dense stream that do not count


def windows(seconds: Sequence[float], frames: int, length: float) -> list[float]:
    """Frames a second over windows of at least so many seconds, one ending at every block."""
    found, start, spent = [], 0, 0.0
    for end, time_of_block in enumerate(seconds):
        spent += time_of_block
        while spent - seconds[start] >= length:
            spent -= seconds[start]
            start += 1
        if spent >= length:
            found.append(frames * (end - start + 1) / spent)
    return found or [frames * len(seconds) / max(sum(seconds), 1e-9)]


def settled_after(seconds: Sequence[float], wanted: float) -> int:
    """Blocks until three in a row have a mean within 10 % of what is wanted; all if never."""
    for start in range(max(len(seconds) - 2, 0)):
        if abs(mean(seconds[start : start + 3]) / wanted - 1) <= 0.1:
            return start
    return len(seconds)


def turning(seconds: Sequence[float]) -> float:
    """Correlation of neighbours' deviations from their mean; -1 for a block-to-block swing."""
    if len(seconds) < 4 or not pstdev(seconds):
        return 0.0
    middle = mean(seconds)
    pairs = pairwise(seconds)
    return sum((a - middle) * (b - middle) for a, b in pairs) / (
        len(seconds) * pstdev(seconds) ** 2
    )


def dense_seconds(bench: Bench, blocks: int) -> float:
    """Median seconds of a whole block on the joined clips."""
    run = bench.run(find_method("full")())
    for (_, frames), _ in zip(bench.joined(), range(blocks + WARM), strict=False):
        bench.push(run.stream, frames)
    return median(sum(block.seconds.values()) for block in run.blocks[WARM:])


def hold(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Hold targets, one after the other, in one stream over the joined clips."""
    dense = dense_seconds(bench, 8)
    frames, limit = bench.block_frames, options.seconds / len(options.targets)
    say(f"dense: {dense:.3f} s a block, {frames / dense:.2f} FPS")
    rate = Rate(fps=options.targets[0] * frames / dense, mode=options.mode)
    control = Controls(rate, *((Cuts(),) if options.cuts else ()))
    run = bench.run(InterFramePruning(), control)
    feed = bench.joined()
    for _ in range(WARM):
        bench.push(run.stream, next(feed)[1])
    rows: list[dict[str, Any]] = []
    told = []
    for number, times in enumerate(options.targets):
        controller = run.control_state.find(RateController)
        controller.retarget(replace(rate, fps=times * frames / dense))
        begun, started = len(run.blocks), time.perf_counter()
        while time.perf_counter() - started < limit:
            clip, pushed = next(feed)
            bench.push(run.stream, pushed)
            block = run.blocks[-1]
            rows.append(
                {
                    "block": len(run.blocks) - 1,
                    "part": number,
                    "clip": clip,
                    "times": times,
                    "target_fps": times * frames / dense,
                    "seconds": sum(block.seconds.values()),
                    "kept": block.kept_share,
                    "fixed": controller.ledger.cost.fixed,
                    "slope": controller.ledger.cost.slope,
                }
            )
        told.append(_part(run, begun, times, dense, frames, options.window))
    write_rows(options.out, "hold", rows)
    _plot_hold(options.out, rows, frames)
    return {"dense_seconds": dense, "parts": told, "blocks": len(run.blocks)}


def _part(
    run: Run, begun: int, times: float, dense: float, frames: int, window: float
) -> dict[str, Any]:
    """Print and return how one target was held."""
    blocks = run.blocks[begun:]
    seconds = [sum(block.seconds.values()) for block in blocks]
    target, wanted = times * frames / dense, dense / times
    report = run.control_state.find(RateController).outcome()
    held = median(windows(seconds, frames, window))
    partial = [s for s, block in zip(seconds, blocks, strict=True) if block.kept_share < 1]
    part = {
        "times": times,
        "target_fps": target,
        "held_fps": held,
        "off": held / target - 1,
        "settled_after": settled_after(seconds, wanted),
        "turning": turning(partial[3:]),
        "spread": pstdev(partial[3:]) / wanted if len(partial) > 5 else None,
        "kept": mean(block.kept_share for block in blocks),
        "blocks": len(blocks),
        "whole": sum(block.kept_share == 1 for block in blocks),
        "out_of_reach": report.out_of_reach,
        "fastest_fps": report.fastest,
    }
    say(
        f"{times:.1f}x: target {target:7.2f} FPS, held {held:7.2f} ({part['off']:+.1%}), "
        f"settled after {part['settled_after']} blocks, neighbours {part['turning']:+.2f}, kept "
        f"{part['kept']:.2f}, {len(blocks)} blocks, {report.out_of_reach} out of reach, at most "
        f"{report.fastest or 0:.1f} FPS"
    )
    return part


def _plot_hold(out: Path, rows: Sequence[dict[str, Any]], frames: int) -> None:
    at, clock = [], 0.0
    for row in rows:
        clock += row["seconds"]
        at.append(clock)
    lines = [
        Line("frames a second, by block", at, [frames / row["seconds"] for row in rows], "points"),
        Line("target", at, [row["target_fps"] for row in rows], "steps"),
    ]
    draw_lines(out / "rate.svg", lines, "seconds", "frames a second")


def _forecast(bench: Bench, method: Method, latents: Sequence[Tensor]) -> Forecast:
    survey = Survey(method)
    for block in latents:
        survey.add(*bench.tokens(block))
    return survey.forecast()


def quality(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """PSNR to dense of three ways to spend the same mean kept share."""
    rows: list[dict[str, Any]] = []
    joined = torch.cat([frames[: 2 * bench.block_frames] for frames in bench.clips.values()])
    for name, frames in [*bench.clips.items(), ("joined", joined)]:
        latents = bench.latents(frames)
        dense = bench.run(find_method("full")())
        wanted = [dense.stream.edit_block(block).cpu() for block in latents]
        for tau in options.taus:
            method = InterFramePruning(tau1=tau, tau2=2 * tau)
            fixed = bench.run(method)
            row: dict[str, Any] = {"clip": name, "tau1": tau}
            row["fixed"] = psnr([fixed.stream.edit_block(b).cpu() for b in latents], wanted)
            row["kept"] = fixed.kept
            forecast = _forecast(bench, method, latents)
            ways = {"constant": Rate(kept=fixed.kept), "two_pass": Rate(kept=fixed.kept)}
            ways["two_pass"] = replace(ways["two_pass"], forecast=forecast)
            for way, rate in ways.items():
                run = bench.run(method, Controls(rate))
                row[way] = psnr([run.stream.edit_block(b).cpu() for b in latents], wanted)
                row[f"{way}_kept"] = run.kept
            rows.append(row)
            numbers = "  ".join(f"{w} {row[w]:.2f} dB" for w in ("fixed", "constant", "two_pass"))
            say(f"{name:<24} tau1 {tau:.2f}  kept {fixed.kept:.3f}  {numbers}")
    write_rows(options.out, "quality", rows)
    order = [float(i + 1) for i in range(len(rows))]
    ways_of = ("fixed", "constant", "two_pass")
    lines = [Line(f"{way} (dB)", order, [row[way] for row in rows], "points") for way in ways_of]
    draw_lines(options.out / "quality.svg", lines, "clip and thresholds", "PSNR to dense, dB")
    means = {way: mean(row[way] for row in rows) for way in ("fixed", "constant", "two_pass")}
    say("mean: " + "  ".join(f"{way} {value:.2f} dB" for way, value in means.items()))
    return means


def true_error(run: Run, asked: Sequence[Tensor], dense: Sequence[Tensor]) -> tuple[float, float]:
    """Root mean square of what reuse shows less dense, and of computed tokens less dense.

    Args:
        run: the guarded one.
        asked: its masks without what was drawn, (B, S, h, w), of every block but the first.
        dense: results of the dense run.
    """
    sums, counts = [0.0, 0.0], [0, 0]
    for number, (shown, wanted) in enumerate(reused(run, asked), 1):
        square = (shown - dense[number]).square().mean(2)
        for kind, which in enumerate((~wanted, wanted)):
            sums[kind] += float(square[which].sum())
            counts[kind] += int(which.sum())
    shows, computed = ((sums[kind] / max(counts[kind], 1)) ** 0.5 for kind in range(2))
    return shows, computed


def reused(run: Run, asked: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """What every block but the first shows without what was drawn, (1, S*N, P), and its mask."""
    for number, keep in enumerate(asked, 1):
        wanted = keep.flatten(2)
        result, previous = run.results[number], run.results[number - 1][:, -wanted.shape[2] :]
        yield restore(result, previous, predecessor_rows(wanted)), wanted.flatten(1)


def noted_masks(run: Run) -> list[Tensor]:
    """A list that the masks fill which the guard draws besides."""
    masks: list[Tensor] = []
    watch = run.control_state.find(Watch)
    sample = watch.sample

    def noted(keep: Tensor, barred: Tensor) -> Tensor:
        masks.append(keep.clone())
        drawn: Tensor = sample(keep, barred)
        return drawn

    watch.sample = noted
    return masks


def noted_results(run: Run, latents: Sequence[Tensor], pixels: Sequence[Tensor]) -> list[Tensor]:
    """Edit blocks; their results in latents, (1, S*N, P) each."""
    coder: Any = run.stream._autoencoder
    decode = coder.decode
    patch = run.stream._backbone.patch

    def noted(grid: Tensor, changed: Tensor | None = None) -> Tensor:
        run.results.append(patchify(grid.float(), patch))
        frames: Tensor = decode(grid, changed)
        return frames

    coder.decode = noted
    for block, frames in zip(latents, pixels, strict=True):
        run.stream.edit_block(block, frames)
    return run.results


def within(low: float, true: float, high: float) -> bool:
    """Whether an interval covers a value; where all was drawn it has no width, but for rounding."""
    return low * (1 - _ROUNDING) <= true <= high * (1 + _ROUNDING)


def guard(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Whether the guard's interval covers the true error, clip by clip."""
    rows: list[dict[str, Any]] = []
    for name, frames in bench.clips.items():
        latents = bench.latents(frames)
        pixels = bench.pixels(frames)
        dense = noted_results(bench.run(find_method("full")()), latents, pixels)
        run = bench.run(InterFramePruning(motion="off"), Controls(Guard(options.share)))
        asked = noted_masks(run)
        noted_results(run, latents, pixels)
        told = run.control_state.report()["guard"]
        if not told["tokens"]:
            say(f"{name:<24} has nothing reused")
            continue
        true, computed = true_error(run, asked, dense)
        covered = told["error"] is not None and within(told["low"], true, told["high"])
        row = {"clip": name, **told, "true": true, "computed": computed, "covered": covered}
        rows.append({**row, "kept": run.kept})
        say(
            f"{name:<24} estimated {told['error'] or 0:.4f} "
            f"[{told['low'] or 0:.4f}, {told['high'] or 0:.4f}], true {true:.4f}, "
            f"{'covered' if covered else 'not covered'}; computed tokens are off by "
            f"{computed:.4f}; drawn {told['drawn']}, kept {run.kept:.2f}"
        )
    write_rows(options.out, "guard", rows)
    order = [float(i + 1) for i in range(len(rows))]
    limits = [row[name] for row in rows for name in ("low", "high")]
    lines = [
        Line("interval", [x for x in order for _ in range(2)], limits, "bars"),
        Line("true error", order, [row["true"] for row in rows], "points"),
    ]
    draw_lines(options.out / "guard.svg", lines, "clip", "error of reused patches")
    say(f"covered: {sum(row['covered'] for row in rows)} of {len(rows)}")
    return {"covered": sum(row["covered"] for row in rows), "clips": len(rows)}


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description="Rate control, two passes and the guard.")
    parser.add_argument("what", choices=("hold", "quality", "guard"))
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--random-1.3b", dest="random_13b", action="store_true")
    parser.add_argument("--prompt", default="oil painting")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--frames", type=int, default=96, help="of each clip, at most")
    parser.add_argument("--seconds", type=float, default=300.0, help="of hold, all targets")
    parser.add_argument("--window", type=float, default=10.0)
    parser.add_argument("--targets", type=float, nargs="+", default=list(TARGETS))
    parser.add_argument("--mode", choices=("constant", "capped"), default="constant")
    parser.add_argument("--cuts", action="store_true", help="whole blocks after scene cuts")
    parser.add_argument("--steps", type=int, default=None, help="denoising passes")
    parser.add_argument("--taus", type=float, nargs="+", default=[0.15, 0.3])
    parser.add_argument("--share", type=float, default=0.02, help="of the guard")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/rates"))
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bench = Bench(options)
    done = {"hold": hold, "quality": quality, "guard": guard}[options.what](bench, options)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    say(json.dumps({"what": options.what, "device": device, "height": bench.height, **done}))


if __name__ == "__main__":
    main()
