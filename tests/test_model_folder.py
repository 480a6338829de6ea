"""Folders of others run no code, ask nothing, and give away nothing that is not in them."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from tests import tiny
from tests.hub_fixtures import (
    Asker,
    Hub,
    Repo,
    hub_fixture,  # noqa: F401
    online_fixture,  # noqa: F401
)
from tests.published import base_folder, publish
from tests.test_models import refused, run
from transformers import AutoTokenizer, T5TokenizerFast

from stillframe.autoencoders.tiny import TinyVideoAutoencoder
from stillframe.backbones.model_folder import check_links, load_tokenizer
from stillframe.errors import ModelError
from stillframe.loading.assemble import Task
from stillframe.loading.load import load_pipeline
from stillframe.loading.recipes import RECIPES_VARIABLE, load_recipes
from stillframe.pipelines.causal_wan import CausalWanPipeline

BROKEN_OUT = "the code of the folder ran"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder to spoil."""
    monkeypatch.setenv("STILLFRAME_CACHE", str(tmp_path / "cache"))
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file; those that are None go."""
    values = {**(json.loads(path.read_text()) if path.exists() else {}), **fields}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


# classes and code


def _own_tokenizer(folder: Path) -> None:
    words = folder / "tokenizer"
    change(words / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Mine"]})
    change(words / "tokenizer_config.json", tokenizer_class="Mine")


def _own_tokenizer_of_a_known_class(folder: Path) -> None:
    words = folder / "tokenizer"
    change(words / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Mine"]})


def _unknown_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="Mine")


def _own_configuration(folder: Path) -> None:
    change(
        folder / "tokenizer" / "config.json", auto_map={"AutoConfig": "mine.Mine"}, model_type="m"
    )
    change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class=None)


def _own_encoder(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "mine.Mine"})


def _kernel_of_a_hub(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", attn_implementation="kernels-community/x")


SPOILT = [
    _own_tokenizer,
    _own_tokenizer_of_a_known_class,
    _unknown_tokenizer,
    _own_configuration,
    _own_encoder,
    _kernel_of_a_hub,
]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_code_of_a_folder_is_never_run_nor_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    """With somebody at the keyboard who says yes to everything."""
    spoil(folder)
    spilt = tmp_path / "spilt"
    for part in ("tokenizer", "text_encoder", "."):
        (folder / part / "mine.py").write_text(f"open({str(spilt)!r}, 'w').write('x')\n")
    keyboard = io.StringIO("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", keyboard)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    task = Task(64, 96)
    for load in (
        lambda: load_pipeline(str(folder), device="cpu", task=task).encode_prompt("oil"),
        lambda: CausalWanPipeline.from_pretrained(folder),
    ):
        with pytest.raises(ModelError) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert keyboard.tell() == 0, "something was asked"
    assert not spilt.exists(), BROKEN_OUT


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["spilt_module", "UMT5EncoderModel"]),
        ("transformer", ["diffusers", "OnnxRuntimeModel"]),
        ("vae", ["stillframe_autoencoder", "TinyVideoAutoencoder"]),
        ("vae", ["stillframe.elsewhere", "TinyVideoAutoencoder"]),
        ("scheduler", ["subprocess", "Popen"]),
        ("_class_name", ["mine", "Mine"]),
    ],
)
def test_only_wans_classes_are_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, named: list[str]
) -> None:
    spilt = tmp_path / "spilt"
    (tmp_path / "spilt_module.py").write_text(f"open({str(spilt)!r}, 'w').write('x')\n")
    (folder / "mine.py").write_text(f"open({str(spilt)!r}, 'w').write('x')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    change(folder / "model_index.json", **{part: named})
    with pytest.raises(ModelError, match=r"was refused: (its|it names)"):
        CausalWanPipeline.from_pretrained(folder)
    assert not spilt.exists(), BROKEN_OUT


def test_a_repository_of_a_hub_is_checked_before_it_is_loaded(
    hub: Hub, online: Asker, folder: Path
) -> None:
    def files() -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    hub.repos["one/fine"] = Repo(files())
    assert "transformer" in online("from_pretrained", name="one/fine")
    _own_tokenizer_of_a_known_class(folder)
    hub.repos["one/code"] = Repo(files())
    with pytest.raises(ModelError, match=r"was refused: tokenizer/tokenizer_config\.json asks for"):
        online("from_pretrained", name="one/code")
    change(folder / "tokenizer" / "tokenizer_config.json", auto_map=None)
    change(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
    hub.repos["one/class"] = Repo(files())
    with pytest.raises(
        ModelError, match=r"its text_encoder is of the class 'transformers\.AutoModel'"
    ):
        online("from_pretrained", name="one/class")


def test_trusting_code_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="never run"):
        CausalWanPipeline.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_of_an_earlier_version_is_the_same_model(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Folders say in which module the tiny autoencoder is, and it has moved."""
    tiny.pipeline().save_pretrained(tmp_path / "now")
    index = tmp_path / "now" / "model_index.json"
    assert json.loads(index.read_text())["vae"][0] == "stillframe.autoencoders.tiny"
    shutil.copytree(tmp_path / "now", tmp_path / "then")
    change(
        tmp_path / "then" / "model_index.json",
        vae=["stillframe.autoencoder", "TinyVideoAutoencoder"],
    )
    now, then = (
        CausalWanPipeline.from_pretrained(tmp_path / name, dtype=dtype).vae.state_dict()
        for name in ("now", "then")
    )
    assert now.keys() == then.keys()
    assert all(torch.equal(now[key], then[key]) for key in now)
    assert next(iter(then.values())).dtype == dtype


@pytest.mark.parametrize("name", ["T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast"])
def test_known_classes_give_what_transformers_finds(folder: Path, name: str) -> None:
    """`AutoTokenizer` is the second derivation."""
    change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class=name)
    if name.startswith("T5"):
        # as T5's own: a unigram model, its special tokens first
        T5TokenizerFast().save_pretrained(folder / "tokenizer")
        change(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class=name)
    ours = load_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    assert type(ours) is type(theirs)
    texts = ["oil painting", "a night, in sepia", ""]
    assert ours(texts).input_ids == theirs(texts).input_ids


# weights and links that lead elsewhere


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("text_encoder", {"num_layers": 10**9}),
        ("transformer", {"num_layers": 10**6}),
        ("transformer", {"ffn_dim": 10**30}),
        ("vae", {"base_dim": 10**9}),
        ("vae", {"num_res_blocks": 10**5}),
    ],
)
def test_no_model_is_begun_that_could_not_be_built(
    folder: Path, part: str, fields: dict[str, int]
) -> None:
    change(folder / part / "config.json", **fields)
    (number,) = fields.values()
    with pytest.raises(ModelError, match=rf"{part}/config.json has \w+ = {number}, and 1\d+ are"):
        load_pipeline(str(folder), device="cpu", vae="full")


@pytest.mark.parametrize("fields", [{"latents_mean": [0.0] * 99}, {"latents_std": [1.0] * 99}])
def test_statistics_of_latents_fit_the_latents(folder: Path, fields: dict[str, Any]) -> None:
    change(folder / "vae" / "config.json", **fields)
    with pytest.raises(ModelError):
        load_pipeline(str(folder), device="cpu", vae="full")
    with pytest.raises(ValueError, match="needs a number for each of 4 latent channels, got"):
        TinyVideoAutoencoder(latent_channels=4, **fields)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("where", ["../../other/", "{tmp}/other/"])
def test_weights_come_from_the_folder_alone(
    folder: Path, tmp_path: Path, part: str, where: str
) -> None:
    """An index of weights may not name files that lie elsewhere."""
    (weights,) = (folder / part).glob("*.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    shutil.move(weights, other / "private.safetensors")
    place = where.format(tmp=tmp_path) + "private.safetensors"
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, place)}
    (folder / part / f"{weights.name}.index.json").write_text(json.dumps(index))
    for load in (
        lambda: load_pipeline(str(folder), device="cpu", task=Task(64, 96)).encode_prompt("oil"),
        lambda: CausalWanPipeline.from_pretrained(folder),
    ):
        with pytest.raises(ModelError, match="which is no file beside it"):
            load()


def test_the_hubs_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """Snapshots of the hub's cache, here or elsewhere, are links to blobs."""
    for cache in (Path(constants.HF_HUB_CACHE), tmp_path / "elsewhere"):
        place = cache / "models--stillframe--links" / "snapshots" / "0123"
        shutil.copytree(folder, place)
        try:
            blobs = place.parents[1] / "blobs"
            blobs.mkdir()
            for number, path in enumerate(p for p in place.rglob("*") if p.is_file()):
                shutil.move(path, blobs / str(number))
                path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
            check_links(place)
            out = tmp_path / f"out-{cache.name}"
            assert run("models", "convert", place, out).exit_code == 0
            assert not [path for path in out.rglob("*") if path.is_symlink()]
            assert load_tokenizer(out)("oil").input_ids == load_tokenizer(folder)("oil").input_ids
        finally:
            shutil.rmtree(place.parents[1])


def _secret(folder: Path, secret: Path) -> None:
    (folder / "tokenizer" / "notes.txt").symlink_to(secret)


def _far_secret(folder: Path, secret: Path) -> None:
    (folder / "tokenizer" / "a").mkdir()
    climbing = os.path.relpath(secret, folder / "tokenizer" / "a")
    (folder / "tokenizer" / "a" / "notes.txt").symlink_to(climbing)


def _secret_behind_two_links(folder: Path, secret: Path) -> None:
    (folder / "tokenizer" / "first").symlink_to("second")
    (folder / "tokenizer" / "second").symlink_to(secret)


def _folder_of_secrets(folder: Path, secret: Path) -> None:
    (folder / "text_encoder" / "notes").symlink_to(secret.parent)


def _part_elsewhere(folder: Path, secret: Path) -> None:
    shutil.move(folder / "tokenizer", secret.parent / "tokenizer")
    (folder / "tokenizer").symlink_to(secret.parent / "tokenizer")


def _circle(folder: Path, secret: Path) -> None:
    (folder / "tokenizer" / "again").symlink_to(folder)


def _dangling(folder: Path, secret: Path) -> None:
    (folder / "tokenizer" / "gone").symlink_to(secret.parent / "gone")


def _device(folder: Path, secret: Path) -> None:
    (folder / "tokenizer" / "null").symlink_to("/dev/null")


def _pipe(folder: Path, secret: Path) -> None:
    os.mkfifo(folder / "tokenizer" / "pipe")


LINKS = [
    _secret,
    _far_secret,
    _secret_behind_two_links,
    _folder_of_secrets,
    _part_elsewhere,
    _circle,
    _dangling,
    _device,
    _pipe,
]


@pytest.mark.parametrize("plant", LINKS, ids=lambda plant: plant.__name__)
def test_links_that_lead_out_are_not_published(folder: Path, tmp_path: Path, plant: Any) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret").write_text("do not publish")
    plant(folder, private / "secret")
    refused(run("models", "convert", folder, tmp_path / "out"), str(folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "private"]


def test_links_within_a_folder_stay_allowed(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer" / "copy.json").symlink_to("tokenizer.json")
    shutil.move(folder / "vae" / "config.json", folder / "elsewhere.json")
    (folder / "vae" / "config.json").symlink_to("../elsewhere.json")
    assert run("models", "convert", folder, tmp_path / "out").exit_code == 0
    copy = tmp_path / "out" / "tokenizer" / "copy.json"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (folder / "tokenizer" / "tokenizer.json").read_bytes()


def test_an_update_beside_weights_is_no_link_out_of_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongLive's second file is found by its name: nobody has said that it may be a link."""
    recipe = load_recipes()["longlive"]
    assert recipe.lora is not None
    _, table = publish(tmp_path, recipe, whole)
    monkeypatch.setenv(RECIPES_VARIABLE, str(table))
    weights, update = (tmp_path / "weights" / name for name in (recipe.file, recipe.lora))
    private = tmp_path / "private"
    private.mkdir()
    shutil.move(update, private / "mine.pt")
    update.symlink_to(private / "mine.pt")
    words = ("models", "convert", weights, tmp_path / "out", "--recipe", "longlive")
    refused(run(*words, "--vae", "full"), "lora.pt", "private")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_users_beside_the_result_stays(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out.part"
    theirs.mkdir()
    (theirs / "precious").write_text("the user's")
    assert run("models", "convert", folder, tmp_path / "out").exit_code == 0
    (folder / "tokenizer" / "gone").symlink_to("nowhere")
    refused(run("models", "convert", folder, tmp_path / "again"), "leads nowhere")
    assert (theirs / "precious").read_text() == "the user's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "out.part"]
