"""A tiny random model as a folder in diffusers' format, and clips to edit with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from tests import tiny
from tests.video_samples import Pixels, make_video
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from stillframe.pipelines.causal_wan import CausalWanPipeline

__all__ = [
    "STYLES",
    "busy_frames",
    "clip_path_fixture",
    "model_folder_fixture",
    "random_pipeline",
    "tiny_pipe_fixture",
]

STYLES = [
    {
        "name": "oil",
        "prompt": "oil painting",
        "summary": "flat dabs of rich colour",
        "keywords": ["oil painting", "painted"],
    },
    {
        "name": "sepia",
        "prompt": "sepia",
        "summary": "brown and old",
        "keywords": ["sepia"],
    },
]
_WORDS = ["<pad>", "</s>", "<unk>", "oil", "painting", "painted", "sepia", "a"]


def _tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _text_encoder() -> Any:
    config = UMT5Config(
        vocab_size=len(_WORDS),
        d_model=tiny.TEXT_DIM,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config).eval().requires_grad_(False)


def random_pipeline(*, trim: int = 0, **config: Any) -> CausalWanPipeline:
    """A random pipeline with source channels, blocks of 12 pixel frames, 48 pixels high."""
    settings = {"text_length": 8, "default_height": 48, "num_inference_steps": 1, **config}
    return CausalWanPipeline(
        _tokenizer(),
        _text_encoder(),
        tiny.transformer(source=True),
        tiny.autoencoder(trim=trim),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        **settings,
    )


@pytest.fixture(name="tiny_pipe")
def tiny_pipe_fixture() -> CausalWanPipeline:
    """`random_pipeline` as it is."""
    return random_pipeline()


@pytest.fixture(name="model_folder", scope="session")
def model_folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved: what ``--model FOLDER`` takes."""
    folder = tmp_path_factory.mktemp("model")
    random_pipeline().save_pretrained(folder)
    (folder / "styles.json").write_text(json.dumps(STYLES), encoding="utf-8")
    return folder


def busy_frames(count: int, width: int = 64, height: int = 48, move: int = 16) -> list[Pixels]:
    """A still picture; in its upper left quarter a square moves from frame ``move`` on."""
    rows, columns = np.mgrid[0:height, 0:width]
    still = np.stack([columns * 3 % 200, rows * 4 % 200, rows + columns], -1).astype(np.uint8)
    frames = []
    for index in range(count):
        frame = still.copy()
        if index >= move:
            left = index * 3 % (width // 2 - 12)
            frame[4:20, left : left + 12] = 255 * (index % 2)
        frames.append(frame)
    return frames


@pytest.fixture(name="clip_path", scope="session")
def clip_path_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of 64x48, still but for a moving square: two and a half blocks."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return make_video(path, busy_frames(30), options={"qp": "0", "preset": "ultrafast"})
