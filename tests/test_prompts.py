"""Prompts: the pipeline's own embeddings, from disk when they are there, and memory given back."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests import tiny
from torch import Tensor

from stillframe.errors import ModelError
from stillframe.loading import prompts
from stillframe.loading.prompts import PromptEncoder, default_cache

LENGTH = 12  # of tiny.pipeline
PROMPTS = ["oil painting of a night", "sepia"]
WEIGHTS = Path("text_encoder") / "model.safetensors"

Make = Callable[..., PromptEncoder]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the tiny text encoder and tokenizer."""
    folder = tmp_path / "model"
    tiny.text_encoder().save_pretrained(folder / "text_encoder")
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def make(model: Path, tmp_path: Path) -> Make:
    """A new encoder of that folder, in float32."""

    def build(**changed: Any) -> PromptEncoder:
        usual = {
            "text_length": LENGTH,
            "dtype": torch.float32,
            "cache": tmp_path / "cache" / "prompts",
            "identity": "tiny",
        }
        return PromptEncoder(model, **{**usual, **changed})

    return build


def expected(prompts: list[str]) -> Tensor:
    return tiny.pipeline().encode_prompt(prompts)


def files(encoder: PromptEncoder) -> list[Path]:
    assert encoder.cache is not None
    return sorted(encoder.cache.iterdir())


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=2e-6)


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change a file of weights in place."""
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# what comes out


@pytest.mark.parametrize("cached", [False, True])
def test_embeddings_are_the_pipelines(make: Make, cached: bool) -> None:
    messy = ["oil   painting\nof &amp;amp; a night ", "sepia"]
    encoder = make() if cached else make(cache=None)
    embeds = encoder(messy)
    assert embeds.shape == (2, LENGTH, tiny.TEXT_DIM)
    assert embeds[1, 2:].count_nonzero() == 0, "not zero past the prompt's end"
    assert embeds[1, :2].ne(0).all()
    close(embeds, expected(messy))
    close(encoder("sepia"), expected(["sepia"]))


def test_a_prompt_longer_than_the_text_is_cut(make: Make) -> None:
    long = "oil painting of a night " * 5
    close(make()([long]), expected([long]))
    assert make()([long])[0, -1].count_nonzero() > 0


def test_order_and_repeats_of_a_batch_are_kept(make: Make) -> None:
    encoder = make()
    batch = ["night", "sepia", "night", "a  night", "sepia"]
    close(encoder(batch), expected(batch))
    assert len(files(encoder)) == 3, "one file a different prompt"
    again = make()
    mixed = ["cartoon", "sepia", "night"]
    close(again(mixed), expected(mixed))
    assert torch.equal(again(batch), encoder(batch))


def test_bfloat16_is_in_and_out(make: Make) -> None:
    encoder = make(dtype=torch.bfloat16)
    embeds = encoder(PROMPTS)
    assert embeds.dtype == torch.bfloat16
    assert torch.equal(make(dtype=torch.bfloat16)(PROMPTS), embeds), "the disk changed them"
    torch.testing.assert_close(embeds.float(), expected(PROMPTS), rtol=0.1, atol=0.1)


def test_what_cannot_be_encoded_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="0 prompts"):
        make()([])
    with pytest.raises(ValueError, match="not valid text"):
        make()(["sepia \udcff"])
    with pytest.raises(ValueError, match=r"bfloat16 or float32, got torch\.float16"):
        make(dtype=torch.float16)
    with pytest.raises(ValueError, match="text_length of 0"):
        make(text_length=0)


# memory


def test_weights_are_released_after_use(make: Make) -> None:
    encoder = make(keep=True)
    encoder("night")
    held = weakref.ref(encoder._model)
    encoder.keep = False
    encoder("sepia")
    assert not encoder.loaded
    gc.collect()
    assert held() is None, "somebody still holds the weights"
    close(encoder("cartoon"), expected(["cartoon"]))
    assert not encoder.loaded


def test_weights_can_be_kept_and_released_by_hand(make: Make) -> None:
    encoder = make(keep=True, cache=None)
    assert not encoder.loaded, "loaded before it was needed"
    first = encoder(PROMPTS)
    assert encoder.loaded
    held = weakref.ref(encoder._model)
    assert torch.equal(encoder(PROMPTS), first)
    assert encoder._model is held()
    encoder.release()
    gc.collect()
    assert not encoder.loaded
    assert held() is None


def test_weights_are_released_when_encoding_fails(make: Make) -> None:
    encoder = make()
    encoder._load()
    encoder._tokenizer = None
    with pytest.raises(TypeError):
        encoder(PROMPTS)
    assert not encoder.loaded


# disk


def test_the_second_time_the_disk_answers(make: Make, model: Path) -> None:
    first = make()(PROMPTS)
    shutil.rmtree(model)
    encoder = make(keep=True)
    assert torch.equal(encoder(PROMPTS), first)
    assert torch.equal(encoder(" sepia "), first[1:]), "a prompt is looked up as it is encoded"
    assert not encoder.loaded
    with pytest.raises(ModelError, match="no folder text_encoder"):
        encoder("cartoon")


@pytest.mark.parametrize(
    "changed",
    [{"identity": "other"}, {"text_length": LENGTH + 1}, {"dtype": torch.bfloat16}],
    ids=lambda changed: next(iter(changed)),
)
def test_another_encoder_finds_nothing(make: Make, changed: dict[str, Any]) -> None:
    make()(PROMPTS)
    other = make(keep=True, **changed)
    assert other(PROMPTS).shape[1] == other.text_length
    assert other.loaded
    assert len(files(other)) == 4


def test_a_file_holds_the_prompt_and_no_padding(make: Make) -> None:
    encoder = make()
    embeds = encoder("oil painting")
    (path,) = files(encoder)
    with safe_open(path, "pt") as opened:
        assert opened.metadata()["prompt"] == "oil painting"
        assert opened.metadata()["identity"] == "tiny"
        (name,) = opened.keys()
        assert torch.equal(opened.get_tensor(name), embeds[0, :3])


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "folder", "rows", "dtype", "name"])
def test_a_damaged_file_is_ignored_and_rewritten(make: Make, damage: str) -> None:
    encoder = make()
    first = encoder("sepia")
    (path,) = files(encoder)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage in ("empty", "cut", "noise"):
        path.write_bytes({"empty": b"", "cut": whole[:-5], "noise": b"\x7f" * 99}[damage])
    else:
        other = {
            "rows": {"embeds": torch.ones(LENGTH + 1, tiny.TEXT_DIM)},
            "dtype": {"embeds": torch.ones(2, tiny.TEXT_DIM, dtype=torch.float16)},
            "name": {"nothing": torch.ones(2, tiny.TEXT_DIM)},
        }
        save_file(other[damage], path)
    if damage == "folder":
        with pytest.warns(UserWarning, match="cannot be written"):
            assert torch.equal(make()("sepia"), first)
        return
    assert torch.equal(make()("sepia"), first)
    assert torch.equal(load_file(path)["embeds"], first[0, :2]), "not rewritten"
    assert files(encoder) == [path], "something was left behind"


def test_an_unwritable_cache_warns_once_and_goes_on(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    encoder = make(cache=tmp_path / "file" / "prompts")
    with pytest.warns(UserWarning, match=r"file/prompts cannot be written: .*irectory") as caught:
        close(encoder(PROMPTS), expected(PROMPTS))
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__), "the warning points at the caller"
    close(encoder("cartoon"), expected(["cartoon"]))  # warnings are errors here


def test_no_cache_writes_nothing(make: Make, tmp_path: Path) -> None:
    make(cache=None)(PROMPTS)
    assert not (tmp_path / "cache").exists()


def test_the_usual_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("STILLFRAME_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == Path("/home/somebody/.cache/stillframe/prompts")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert default_cache() == Path("/fast/stillframe/prompts")
    monkeypatch.setenv("STILLFRAME_CACHE", "~/own")
    assert default_cache() == Path("/home/somebody/own/prompts")


# loading


def test_the_word_embeddings_load_under_either_name(make: Make, model: Path) -> None:
    """Files hold them as ``shared``, as the encoder's own, or twice."""
    shared, own = "shared.weight", "encoder.embed_tokens.weight"

    def rename(weights: dict[str, Tensor]) -> None:
        weights[own] = weights.pop(shared)

    def double(weights: dict[str, Tensor]) -> None:
        weights[shared] = weights[own].clone()

    def differ(weights: dict[str, Tensor]) -> None:
        weights[own] = torch.zeros_like(weights[own])

    assert shared in load_file(model / WEIGHTS)
    for change in (rename, double):
        edit(model / WEIGHTS, change)
        close(make(cache=None)(PROMPTS), expected(PROMPTS))
    edit(model / WEIGHTS, differ)
    with pytest.raises(ModelError, match="differ and must be one"):
        make()(PROMPTS)


def test_missing_and_misshapen_weights_are_not_made_up(make: Make, model: Path) -> None:
    name = "encoder.final_layer_norm.weight"
    edit(model / WEIGHTS, lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=f"1 of its weights are missing, {name}"):
        make()(PROMPTS)
    edit(model / WEIGHTS, lambda weights: weights.update({name: torch.ones(3)}))
    with pytest.raises(ModelError, match=rf"{name} is \(3,\) where \({tiny.TEXT_DIM},\) is needed"):
        make()(PROMPTS)


def test_every_failure_to_load_is_one_sentence(
    make: Make, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def reason() -> str:
        encoder = make()
        with pytest.raises(ModelError, match="text encoder") as raised:
            encoder(PROMPTS)
        assert not encoder.loaded
        assert encoder.cache is not None
        assert not encoder.cache.exists(), "a failure was cached"
        return str(raised.value)

    whole = (model / WEIGHTS).read_bytes()
    wrong = {"shared.weight": torch.zeros(3, 3)}
    sentences = []
    # a wrong shape, half a file, none, and so on
    edit(model / WEIGHTS, lambda weights: weights.update(wrong))
    sentences.append(reason())
    (model / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    sentences.append(reason())
    (model / WEIGHTS).unlink()
    sentences.append(reason())
    (model / "text_encoder" / "config.json").write_text("{")
    sentences.append(reason())
    (model / WEIGHTS).write_bytes(whole)
    shutil.rmtree(model / "tokenizer")
    sentences.append(reason())
    (model / "tokenizer").mkdir()
    sentences.append(reason())
    for sentence in sentences:
        assert "\n" not in sentence
        assert ". " not in sentence
        assert len(sentence) < 400 + len(str(model))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", ""), "loading is not to be heard"


def test_the_cache_on_disk_is_bounded(tmp_path: Path) -> None:
    """The files written longest ago go."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for number in range(7):
        path = folder / f"{number:064x}.safetensors"
        path.write_bytes(b"old")
        os.utime(path, (number, number))
    for theirs in (mine := {"mine.txt", "mine.safetensors"}):
        (folder / theirs).write_text("not a prompt")
        os.utime(folder / theirs, (0, 0))
    prompts._forget_oldest(folder, 3)
    left = {f"{number:064x}.safetensors" for number in (4, 5, 6)}
    assert {path.name for path in folder.iterdir()} == left | mine
    prompts._forget_oldest(folder, 3)
    assert len(list(folder.iterdir())) == 5
