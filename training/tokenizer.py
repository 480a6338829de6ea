"""Build the bundled model's tokenizer from the caption bank.

Byte-pair encoding over lower-case words without diacritics. Single characters are in the
vocabulary, so a word that was never seen is spelt out; only other scripts become ``<unk>``. The
same bank gives the same files, byte for byte.

This file knows the sentences of ``captions`` and nothing of styles or models.

Run as ``python -m training.tokenizer OUT``.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from training.captions import caption_bank

__all__ = ["MAX_LENGTH", "SPECIAL_TOKENS", "VOCABULARY", "build_tokenizer", "save_tokenizer"]

VOCABULARY = 1024
"""Most tokens there may be."""

MAX_LENGTH = 32
"""Most tokens of a prompt, the end token included."""

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
"""Tokens 0, 1 and 2."""

_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + "▁"


def build_tokenizer(sentences: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a tokenizer that ends every text with ``</s>``.

    Args:
        sentences: what to learn words from.
        vocabulary: most tokens, special ones and single characters included.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace("’", "'"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # punctuation apart, so that "sepia," is "sepia"
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list(_CHARACTERS),
        limit_alphabet=len(_CHARACTERS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that ``transformers.PreTrainedTokenizerFast.from_pretrained`` loads.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pad, end, unknown = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "pad_token": pad,
        "eos_token": end,
        "unk_token": unknown,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Command line: build from the caption bank and save."""
    parser = argparse.ArgumentParser(description="Build the tokenizer of the bundled model.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    options = parser.parse_args()
    save_tokenizer(build_tokenizer(caption_bank()), options.out)


if __name__ == "__main__":
    main()
