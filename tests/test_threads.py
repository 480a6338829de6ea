"""Streams of one model in threads of their own: the same pictures as one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from tests import tiny
from torch import Tensor

from stillframe.backbones.wan import WanDenoiser
from stillframe.loading.load import load_pipeline
from stillframe.loading.prompts import PromptEncoder
from stillframe.loading.random_model import random_pipeline
from stillframe.pipelines.causal_wan import CausalWanPipeline
from stillframe.turns import device_turn, model_turn

THREADS = 8
PROMPTS = ["oil painting", "sepia", "night", "a cartoon", "painting of a night", "oil", "a", "of"]


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What ``work(0)`` to ``work(7)`` give, begun at the same moment by eight threads."""
    start = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def stream(pipe: CausalWanPipeline, number: int, execution: str) -> Tensor:
    """Edited frames of a video, a seed and a prompt of one's own, pushed in uneven pieces."""
    generator = torch.Generator().manual_seed(number)
    opened = pipe.stream(PROMPTS[number], generator=generator, execution=execution)
    video = tiny.clip(30, 32, 48, seed=number)
    parts = [opened.push(piece) for piece in video.split(5 + number, 1)] + [opened.flush()]
    return torch.cat([part for part in parts if part is not None], 1)


def unlike(got: list[Tensor], expected: list[Tensor]) -> list[str]:
    """Which streams differ, by how much, and in which frames."""
    return [
        f"{number}: {(a - b).abs().max():.1e} in frames {frames}"
        for number, (a, b) in enumerate(zip(got, expected, strict=True))
        if (frames := (a != b).transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist())
    ]


def processors(model: Any) -> list[Any]:
    return list(model.attn_processors.values())


@pytest.mark.parametrize("execution", ["reference", "fused"])
@pytest.mark.parametrize("wan", [False, True])
def test_eight_threads_give_what_one_gives(wan: bool, execution: str) -> None:
    pipe = tiny.pipeline(wan=wan)
    before = processors(pipe.transformer)
    expected = [stream(pipe, number, execution) for number in range(THREADS)]
    # every thread opens its stream on a pipeline that nobody has used
    fresh = tiny.pipeline(wan=wan)
    assert not unlike(at_once(lambda number: stream(fresh, number, execution)), expected)
    assert not unlike(at_once(lambda number: stream(pipe, number, execution)), expected)
    assert all(a is b for a, b in zip(processors(pipe.transformer), before, strict=True))


@pytest.mark.parametrize("wan", [False, True])
def test_opening_a_stream_moves_no_weights(wan: bool) -> None:
    """Other threads may be using them, and convolutions of another order round otherwise."""
    pipe = tiny.pipeline(wan=wan)
    before = [(p.data_ptr(), p.stride()) for p in pipe.vae.parameters()]
    stream(pipe, 0, "reference")
    assert [(p.data_ptr(), p.stride()) for p in pipe.vae.parameters()] == before


def test_so_do_pipelines_that_share_a_transformer() -> None:
    one = tiny.pipeline()
    pipes = [CausalWanPipeline(**one.components) for _ in range(THREADS)]
    expected = [stream(one, number, "reference") for number in range(THREADS)]
    assert not unlike(at_once(lambda n: stream(pipes[n], n, "reference")), expected)


def test_the_stock_model_may_run_meanwhile() -> None:
    """A call that is not ours finds the model as it always was, in the midst of our passes."""
    model = tiny.transformer()
    before = processors(model)
    x, text = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 5, tiny.TEXT_DIM)
    alone = tiny.stock(model, x, torch.ones(3), text)
    with WanDenoiser(model).attached(), ThreadPoolExecutor(1) as pool:
        assert processors(model) != before
        assert torch.equal(pool.submit(tiny.stock, model, x, torch.ones(3), text).result(), alone)
    assert processors(model) == before


def test_overlapping_passes_leave_no_processors_behind() -> None:
    model = tiny.transformer()
    before = processors(model)
    inside: list[int] = []

    def enter(number: int) -> None:
        for _ in range(20):
            with WanDenoiser(model).attached():
                inside.append(number)
                assert len(inside) == 1, "two threads are in one model at once"
                with WanDenoiser(model).attached():  # the same thread may enter again
                    pass
                inside.remove(number)

    at_once(enter)
    assert all(a is b for a, b in zip(processors(model), before, strict=True))


def test_a_callback_may_wait_for_another_stream() -> None:
    """Nobody else's code is called while others are kept waiting."""
    pipe = tiny.pipeline()
    with ThreadPoolExecutor(1) as pool:

        def wait(_: Any) -> None:
            pool.submit(stream, pipe, 1, "reference").result(timeout=60)

        opened = pipe.stream("night", on_block=wait)
        assert opened.push(tiny.clip(12, 32, 48)) is not None


def test_models_do_not_wait_for_each_other() -> None:
    first, second = tiny.transformer(), tiny.transformer()
    with model_turn(first), ThreadPoolExecutor(1) as pool:

        def enter() -> bool:
            with model_turn(second), device_turn(torch.device("cpu")):
                return True

        assert pool.submit(enter).result(timeout=60)


def test_prompts_are_encoded_for_eight_threads(tmp_path: Any) -> None:
    """By the pipeline's own encoder, and by one that comes and goes."""
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path)
    encoder = PromptEncoder(tmp_path, 12, torch.float32, cache=None, identity="tiny")
    expected = [pipe.encode_prompt(prompt) for prompt in PROMPTS]
    encoders: list[Callable[[str], Tensor]] = [pipe.encode_prompt, encoder]
    for encode in encoders:

        def encoded(number: int, encode: Callable[[str], Tensor] = encode) -> list[Tensor]:
            return [encode(prompt) for prompt in PROMPTS[number:] + PROMPTS[:number]]

        got = at_once(encoded)
        for number, rows in enumerate(got):
            wanted = expected[number:] + expected[:number]
            for row, alone in zip(rows, wanted, strict=True):
                torch.testing.assert_close(row, alone, rtol=0, atol=1e-6)
    assert not encoder.loaded


def test_a_turn_makes_its_card_the_thread_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins with the first card, where Triton would launch what is on another."""
    seen: list[tuple[str, int]] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        seen.append(("from", device.index))
        yield
        seen.append(("to", device.index))

    def work() -> None:
        with device_turn(torch.device("cuda:1")):
            seen.append(("within", 1))

    monkeypatch.setattr(torch.cuda, "device", current)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [("from", 1), ("within", 1), ("to", 1)]


@pytest.mark.parametrize(
    "load", [load_pipeline, partial(random_pipeline, "1.3b", dtype=torch.bfloat16)]
)
def test_a_model_s_card_is_the_present_one_before_anything_is_made(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: torch.device) -> None:
        raise LookupError(str(device))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    with pytest.raises(LookupError, match="cuda:1"):
        load(device="cuda:1")


@pytest.mark.gpu
@pytest.mark.parametrize("execution", ["auto", "graphs", "fused", "reference"])
def test_eight_threads_on_a_gpu(execution: str) -> None:
    """Graphs of all streams share one pool of memory, and are captured while others wait."""
    pipe = tiny.pipeline().to("cuda")

    def edited(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        opened = pipe.stream(PROMPTS[number], generator=generator, execution=execution)
        video = tiny.clip(96, 32, 48, seed=number).cuda()
        parts = [opened.push(piece) for piece in video.split(12, 1)] + [opened.flush()]
        return torch.cat([part for part in parts if part is not None], 1).cpu()

    expected = [edited(number) for number in range(THREADS)]
    for one, alone in zip(at_once(edited), expected, strict=True):
        torch.testing.assert_close(one, alone, rtol=0, atol=1e-4)
