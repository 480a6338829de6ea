"""Captions, the tokenizer, and the placing of prompts among a model's styles."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from training.captions import (
    CONTENTS,
    HELD_OUT,
    PARAPHRASES,
    TEMPLATES,
    americanise,
    canonical,
    caption_bank,
    sample_caption,
    styles_table,
)
from training.filters import FILTERS
from training.tokenizer import MAX_LENGTH, VOCABULARY, build_tokenizer, save_tokenizer
from transformers import PreTrainedTokenizerFast

from stillframe.errors import ModelError
from stillframe.loading.styles import STYLES_FILE, Style, find, load_styles, match, place

UNRELATED = (
    "a cat on a sofa",
    "make it snow",
    "bicycle",
    "asdf",
    "a carton of milk",
    "a golden retriever",
    "a dog panting",
    "a moose in the woods",
    "remove the background",
    "change the shirt to red",
    "make her smile",
    "steampunk",
    "low light",
    "brown bear",
    "electric guitar",
    "",
    "!?",
)


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Style, ...]:
    folder = tmp_path_factory.mktemp("model")
    (folder / STYLES_FILE).write_text(json.dumps(styles_table()), encoding="utf-8")
    return load_styles(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(caption_bank()), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def placed(prompt: str, styles: tuple[Style, ...]) -> str | None:
    style = place(prompt, styles)
    return None if style is None else style.name


def plain(text: str) -> str:
    """Lower-case words between single spaces, in American spelling."""
    return f" {' '.join(re.findall(r'[a-z0-9&]+', americanise(text.lower())))} "


def test_bank_is_rich_enough() -> None:
    assert set(PARAPHRASES) == set(HELD_OUT) == set(FILTERS)
    assert all(len(set(phrases)) >= 12 for phrases in PARAPHRASES.values())
    assert all(len(set(phrases)) >= 3 for phrases in HELD_OUT.values())
    assert len(set(CONTENTS)) >= 60
    every = [p for phrases in PARAPHRASES.values() for p in {plain(p) for p in phrases}]
    assert len(set(every)) == len(every), "two styles share a paraphrase"


def test_held_out_is_never_sampled() -> None:
    rng = random.Random(0)
    held = [plain(phrase) for phrases in HELD_OUT.values() for phrase in phrases]
    sampled = [sample_caption(name, rng) for name in PARAPHRASES for _ in range(200)]
    said = "|".join(plain(caption) for caption in (*sampled, *caption_bank()))
    assert not [phrase for phrase in held if phrase in said]


def test_samples_vary_and_repeat_with_the_seed() -> None:
    first = [sample_caption("sepia", random.Random(seed)) for seed in range(200)]
    assert first == [sample_caption("sepia", random.Random(seed)) for seed in range(200)]
    assert len(set(first)) > 100
    assert any(caption.isupper() for caption in first)
    both = [sample_caption("watercolour", random.Random(seed)).lower() for seed in range(200)]
    assert any("watercolour" in caption for caption in both)
    assert any("watercolor " in f"{caption} " for caption in both)


def test_samples_come_from_the_style() -> None:
    rng = random.Random(1)
    for name, phrases in PARAPHRASES.items():
        for _ in range(50):
            caption = plain(sample_caption(name, rng))
            assert any(plain(phrase) in caption for phrase in phrases)


def test_unknown_style_of_a_caption() -> None:
    with pytest.raises(ValueError, match="blueprint"):
        sample_caption("crayon", random.Random(0))
    with pytest.raises(ValueError, match="crayon"):
        canonical("crayon")


def test_tokenizer_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length == MAX_LENGTH == 32
    assert len(tokenizer) <= VOCABULARY == 1024
    batch = tokenizer(["sepia", "oil on canvas"], padding="max_length", truncation=True)
    assert all(len(ids) == MAX_LENGTH for ids in batch.input_ids)
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        assert ids[sum(mask) - 1] == 1
        assert set(ids[sum(mask) :]) == {0}


def test_tokenizer_round_trip(tokenizer: Any) -> None:
    for text in (*caption_bank()[::40], "zyzzyva, b&w 8-bit!"):
        ids = tokenizer(text).input_ids
        assert 2 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


def test_tokenizer_unknown_words_and_scripts(tokenizer: Any) -> None:
    unknown = tokenizer("qwxzv").input_ids
    assert 2 not in unknown
    assert len(unknown) > 4, "an unknown word is spelt out"
    assert 2 in tokenizer("日本").input_ids
    assert tokenizer("SÉPIA").input_ids == tokenizer("sepia").input_ids
    assert tokenizer("").input_ids == [1]


def test_captions_fit_the_prompt_length(tokenizer: Any) -> None:
    rng = random.Random(2)
    texts = [sample_caption(name, rng) for name in PARAPHRASES for _ in range(50)]
    texts += [phrase for phrases in HELD_OUT.values() for phrase in phrases]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= MAX_LENGTH


def test_known_words_are_whole_tokens(tokenizer: Any) -> None:
    # the encoder is small: it should not have to put common words together from letters
    words = {word for phrases in PARAPHRASES.values() for p in phrases for word in p.split()}
    words = {word for word in words if word.isalpha()}
    whole = [word for word in words if len(tokenizer(word).input_ids) == 2]
    assert len(whole) >= 0.95 * len(words)


def test_tokenizer_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tokenizer(build_tokenizer(caption_bank()), tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("bank", [PARAPHRASES, HELD_OUT], ids=["paraphrases", "held out"])
def test_places_what_it_should(bank: dict[str, tuple[str, ...]], styles: tuple[Style, ...]) -> None:
    prompts = [
        (name, spelt)
        for name, phrases in bank.items()
        for phrase in phrases
        for spelt in (phrase, americanise(phrase).upper(), f"make it look like {phrase}!")
    ]
    wrong = [(name, text) for name, text in prompts if placed(text, styles) != name]
    assert len(wrong) <= 0.05 * len(prompts), wrong


def test_places_inside_templates(styles: tuple[Style, ...]) -> None:
    rng = random.Random(4)
    captions = [(name, sample_caption(name, rng)) for name in PARAPHRASES for _ in range(12)]
    wrong = [caption for name, caption in captions if placed(caption, styles) != name]
    assert len(wrong) <= 0.05 * len(captions), wrong


@pytest.mark.parametrize("prompt", UNRELATED)
def test_places_nothing_unrelated(prompt: str, styles: tuple[Style, ...]) -> None:
    assert place(prompt, styles) is None


def test_content_and_templates_say_nothing_of_styles(styles: tuple[Style, ...]) -> None:
    said = {template.format(x="", content=CONTENTS[0]) for template in TEMPLATES}
    assert not [text for text in (*said, *CONTENTS) if place(text, styles)]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("like an oil paint canvas", "oil"),
        ("black & white film noir", "noir"),
        ("Van Gogh", "oil"),
        ("8-bit pixel art", "mosaic"),
        ("Aquarèlle", "watercolour"),
        ("Water-Colour!", "watercolour"),
        ("a watercolur", "watercolour"),
        ("bluprint", "blueprint"),
        ("sepia photo", "sepia"),
        ("a photo in sepia", "sepia"),
        ("black and white photo", "noir"),
        ("neon city at night, neon lights", "neon"),
        ("golden-hour", "golden-hour"),
        ("oil", "oil"),
    ],
)
def test_places_free_prompts(prompt: str, name: str, styles: tuple[Style, ...]) -> None:
    assert placed(prompt, styles) == name


def test_no_table_places_nothing(tmp_path: Path) -> None:
    assert load_styles(tmp_path) == ()
    assert place("oil painting", ()) is None
    with pytest.raises(ValueError, match="no table of styles"):
        find("oil", ())


def test_table_survives_the_file(styles: tuple[Style, ...]) -> None:
    assert [style.name for style in styles] == list(FILTERS)
    assert [style.prompt for style in styles] == [canonical(style.name) for style in styles]
    assert all(style.summary and style.keywords for style in styles)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("{}", "not a list"),
        ("[1]", "not an object"),
        ('[{"name": "a"}]', "needs a name"),
        ('[{"name": "a", "prompt": "a", "keywords": "a"}]', "needs a name"),
        ('[{"name": "a", "prompt": "x"}, {"name": "A", "prompt": "y"}]', "the same name"),
    ],
)
def test_broken_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / STYLES_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_styles(tmp_path)


def test_find_by_name(styles: tuple[Style, ...]) -> None:
    for style in styles:
        assert find(style.name.upper(), styles) is style
    assert find("Golden Hour", styles).name == "golden-hour"
    assert find("watercolor", styles).name == "watercolour"


@pytest.mark.parametrize(
    ("name", "closest"),
    [("waterclor", "watercolour"), ("oil painting", "oil"), ("cartton", "cartoon")],
)
def test_find_names_the_closest(name: str, closest: str, styles: tuple[Style, ...]) -> None:
    with pytest.raises(ValueError, match=f"known are photo, .* did you mean '{closest}'"):
        find(name, styles)


@pytest.mark.parametrize(
    ("prompt", "name", "score"),
    [
        ("oil painting", "oil", 1.0),
        ("in the style of van Gogh", "oil", 1.0),
        ("a village by van Gogh", "oil", 2 / 3),
        ("painted like van Gogh, of two houses, quiet", "oil", 3 / 6),
    ],
)
def test_a_match_tells_how_much_of_the_prompt_it_goes_by(
    prompt: str, name: str, score: float, styles: tuple[Style, ...]
) -> None:
    found = match(prompt, styles)
    assert found is not None
    assert found.style.name == name
    assert found.score == pytest.approx(score)
    # words that no style knows make it less sure, and little words do not
    more, same = match(f"{prompt} quokka", styles), match(f"{prompt} in the", styles)
    assert more is not None
    assert same is not None
    assert 0 < more.score < found.score
    assert same.score == found.score


def test_no_match_without_a_word_that_is_known(styles: tuple[Style, ...]) -> None:
    assert match("a cat on a sofa", styles) is None
    assert match("in the style of", styles) is None
