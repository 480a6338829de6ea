"""Prompts to embeddings, in as little memory as can be: used and released, cached on disk.

The text encoder of Wan is several times the size of its smaller transformers and is needed for a
moment only. It is loaded at the first prompt that is not on disk and let go after it; what it said
is kept in a small file a prompt. This file does not know what embeddings are used for.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import UMT5EncoderModel
from transformers.utils import logging

from stillframe.backbones.finite import check_model
from stillframe.backbones.model_folder import check_part, load_tokenizer
from stillframe.errors import ModelError, OutputError
from stillframe.whole_file import write_whole

__all__ = ["CACHE_VARIABLE", "PromptEncoder", "clean_prompt", "default_cache"]

#: Names the cache folder; prompts are in its sub-folder ``prompts``.
CACHE_VARIABLE = "STILLFRAME_CACHE"

#: Part of every key: another number makes all files written before misses.
FORMAT = 1

_ROWS = "embeds"

# begins files of some editors, and is pasted with what they hold; it means nothing inside a text
_BYTE_ORDER_MARK = "\ufeff"

# prompts kept in memory; 4 MB each at most in Wan's length and width
_RECENT = 16

# prompts kept on disk, all models together: 4 GB at the very most, and far less with usual prompts
_FILES = 1000
# theirs alone: whatever else is in the folder is not ours to remove
_NAMES = "[0-9a-f]" * 64 + ".safetensors"


def default_cache() -> Path:
    """Where embeddings are kept; not created here.

    ``$STILLFRAME_CACHE/prompts``, else ``$XDG_CACHE_HOME/stillframe/prompts``, else
    ``~/.cache/stillframe/prompts``.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser() / "prompts"
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(shared).expanduser() / "stillframe" / "prompts"


class PromptEncoder:
    """A text encoder that is in memory only while it is needed.

    Args:
        folder: has ``text_encoder/`` and ``tokenizer/``, as diffusers' folders do.
        text_length: tokens of a prompt; longer ones are cut off.
        dtype: bfloat16 or float32, of weights and embeddings. UMT5's activations exceed float16's
            range, so that is refused.
        device: where to encode.
        keep: leave the weights there between calls instead of releasing them after each.
        cache: folder of the embeddings on disk; None writes and reads nothing.
        identity: which text encoder this is, for the cache: prompts that were encoded under
            another identity, length or dtype are not found.

    Raises:
        ValueError: for another dtype, or a length below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        text_length: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        keep: bool = False,
        *,
        cache: Path | None,
        identity: str,
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(f"text is encoded in bfloat16 or float32, got {dtype}")
        if text_length < 1:
            raise ValueError(f"a prompt has at least 1 token, got a text_length of {text_length}")
        self.folder = Path(folder)
        self.text_length = text_length
        self.dtype = dtype
        self.device = torch.device(device)
        self.keep = keep
        self.cache = cache
        self.identity = identity
        self._model: Any = None
        self._tokenizer: Any = None
        self._warned = False
        self._recent: dict[str, Tensor] = {}
        self._lock = threading.RLock()

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """Embed prompts; loads weights only if one of them is not on disk.

        Returns:
            (B, text_length, text_dim) of ``dtype`` on the CPU wherever it was encoded, one row a
            prompt in their order, zero past each prompt's end, as in Wan.

        Raises:
            ModelError: the text encoder or the tokenizer cannot be loaded.
            ValueError: there is no prompt, or one is not text.
        """
        cleaned = [_clean(p) for p in ([prompts] if isinstance(prompts, str) else prompts)]
        if not cleaned:
            raise ValueError("there are 0 prompts to encode")
        rows: dict[str, Tensor] = {}
        with self._lock:  # weights must not go while another thread encodes
            try:
                for prompt in dict.fromkeys(cleaned):
                    rows[prompt] = self._rows(prompt)
            finally:
                if not self.keep:
                    self.release()
        return torch.stack(
            [F.pad(rows[p], (0, 0, 0, self.text_length - len(rows[p]))) for p in cleaned]
        )

    def _rows(self, prompt: str) -> Tensor:
        """A prompt's rows from memory, from disk, or encoded now."""
        rows = self._recent.pop(prompt, None)
        if rows is None:
            rows = self._read(prompt)
        if rows is None:
            rows = self._encode(prompt)
            self._write(prompt, rows)
        self._recent[prompt] = rows
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return rows

    def release(self) -> None:
        """Let the weights go, and give a GPU's memory back; the next new prompt loads them anew."""
        if not self.loaded:
            return
        self._model = self._tokenizer = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # encoding

    @torch.inference_mode()
    def _encode(self, prompt: str) -> Tensor:
        """(tokens of the prompt, text_dim) on the CPU. One prompt at a time needs least memory."""
        if self._model is None:
            self._load()
        tokens = self._tokenizer(
            [prompt],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask
        ids, seen = tokens.input_ids.to(self.device), mask.to(self.device)
        embeds = self._model(ids, seen).last_hidden_state * seen.unsqueeze(-1)
        end = int((mask[0] * torch.arange(1, mask.shape[1] + 1)).max())
        return embeds[0, :end].to("cpu", self.dtype).clone()

    def _load(self) -> None:
        """Read tokenizer and weights, the latter straight to the device.

        Raises:
            ModelError: they are not there, damaged, or another model's.
        """
        for part in ("text_encoder", "tokenizer"):
            if not (self.folder / part).is_dir():
                raise ModelError(f"{self.folder} has no text encoder: there is no folder {part}")
        try:
            with _quietly():
                tokenizer = load_tokenizer(self.folder)
                check_part(self.folder / "text_encoder")
                model, report = UMT5EncoderModel.from_pretrained(
                    self.folder,
                    subfolder="text_encoder",
                    dtype=self.dtype,
                    device_map={"": self.device},
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # `_check` says which, transformers does not
                )
            _check(model, report)
            check_model(model, "it")
        except Exception as error:  # damaged and foreign folders fail in every way there is
            raise ModelError(
                f"the text encoder in {self.folder} cannot be loaded: {_sentence(error)}"
            ) from error
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer

    # cache on disk

    def _path(self, prompt: str) -> Path:
        assert self.cache is not None
        key = json.dumps([FORMAT, self.identity, self.text_length, str(self.dtype), prompt])
        return self.cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _read(self, prompt: str) -> Tensor | None:
        """A prompt's rows from disk; None if they are not there or not to be trusted."""
        if self.cache is None:
            return None
        try:
            rows = load_file(self._path(prompt))[_ROWS]
        except (OSError, SafetensorError, KeyError):
            return None
        fits = rows.ndim == 2 and len(rows) <= self.text_length and rows.dtype == self.dtype
        return rows if fits else None

    def _write(self, prompt: str, rows: Tensor) -> None:
        """Keep a prompt's rows on disk; says so once if that cannot be done."""
        if self.cache is None:
            return
        about = {"prompt": prompt, "identity": self.identity, "text_length": str(self.text_length)}
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(prompt), (save({_ROWS: rows.contiguous()}, about),))
            _forget_oldest(self.cache, _FILES)
        except (OSError, OutputError) as error:
            if not self._warned:
                # of an OutputError, what the system said
                cause = error.__cause__ or error
                reason = getattr(cause, "strerror", None) or type(cause).__name__
                warnings.warn(
                    f"prompts are not kept: {self.cache} cannot be written: {reason}", stacklevel=4
                )
            self._warned = True


def clean_prompt(prompt: str) -> str:
    """A prompt as people type or paste it, with white space of every kind as single spaces.

    Tabs, line ends, no-break and full-width spaces count as white space; byte order marks go. All
    else that is text stays: joiners (ZWJ, ZWNJ) and marks of direction belong to words and emoji.
    Cleaning twice is cleaning once.

    Raises:
        ValueError: it holds a control character other than white space, or is no text, as bytes in
            an argument of a command may be.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt is text, got {type(prompt).__name__}")
    for letter in prompt:
        code = ord(letter)
        if 0xD800 <= code <= 0xDFFF:
            raise ValueError(f"the prompt {prompt!r} is not valid text")
        if (code < 0x20 or 0x7F <= code < 0xA0) and not letter.isspace():
            raise ValueError(f"a prompt has no control characters, got U+{code:04X}")
    return " ".join(prompt.replace(_BYTE_ORDER_MARK, "").split())


def _clean(prompt: str) -> str:
    """As Wan's pipelines clean prompts, too.

    Raises:
        ValueError: see `clean_prompt`.
    """
    cleaned: str = prompt_clean(clean_prompt(prompt))
    return cleaned


def _forget_oldest(folder: Path, most: int) -> None:
    """Remove the files written longest ago, so that at most ``most`` are left."""
    files = sorted(folder.glob(_NAMES), key=lambda path: path.stat().st_mtime)
    for path in files[: max(len(files) - most, 0)]:
        path.unlink(missing_ok=True)


def _check(model: Any, report: dict[str, Any]) -> None:
    """Refuse what transformers would load with a warning.

    Raises:
        ValueError: weights are missing or of the wrong shape, or words have two embeddings where
            UMT5 has one.
    """
    for name, got, wanted in sorted(report["mismatched_keys"]):
        raise ValueError(f"{name} is {tuple(got)} where {tuple(wanted)} is needed")
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} for one")
    first, second = model.shared.weight, model.encoder.embed_tokens.weight
    if first is not second and not torch.equal(first, second):
        raise ValueError("shared.weight and encoder.embed_tokens.weight differ and must be one")


def _sentence(error: Exception, most: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.split(". ")[0].rstrip(".")
    return text if len(text) <= most else text[: most - 3] + "..."


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bars, log lines and warnings of transformers within the block."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
