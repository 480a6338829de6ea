"""Files from a hub: what is asked of it, what arrives, and what is said when it does not."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.hub_fixtures import (
    Asker,
    Hub,
    Repo,
    asker,
    hub_fixture,  # noqa: F401
    online_fixture,  # noqa: F401
)

from stillframe.errors import ModelError
from stillframe.loading import hub as files_of
from stillframe.loading import recipes
from stillframe.loading.hub import TINY_VAE_FILE, TINY_VAE_REPO, RemoteFile, Wanted

MODEL = {
    "model_index.json": b"{}",
    "transformer/config.json": b'{"in": 16}',
    "transformer/diffusion_pytorch_model.safetensors": b"t" * 70_000,
    "text_encoder/config.json": b"{ }",
    "text_encoder/model-1.safetensors": b"e" * 50_000,
    "text_encoder/model-2.safetensors": b"n" * 40_000,
    "tokenizer/deep/er/words.json": b"[1]",
    "scheduler/scheduler_config.json": b"[2]",
    "vae/config.json": b"[3]",
    "assets/logo.png": b"not wanted",
}
BUILT_IN = recipes.read_recipes(Path(recipes.__file__).with_suffix(".toml"))
ENCODER = [name for name in MODEL if name.startswith("text_encoder")]


def _wanted(repo: str, *names: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(repo, names)]


def _refusal(asked: Asker, action: str, **given: Any) -> str:
    """The one sentence with which an action is refused."""
    with pytest.raises(ModelError) as caught:
        asked(action, **given)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert asked.complaints() == ""
    return sentence


# what is wanted


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_recipe_wants_its_weights_and_its_bases_everything_else(name: str) -> None:
    recipe = BUILT_IN[name]
    tiny, full = files_of.wanted_by(recipe), files_of.wanted_by(recipe, "full")
    for wanted in (tiny, full):
        assert wanted[0].repo == recipe.repo
        assert set(wanted[0].files) == {recipe.file, recipe.lora} - {None}
        assert wanted[1].repo == recipe.base
        of_transformer = [f for f in wanted[1].files if f.startswith("transformer")]
        assert of_transformer == ["transformer/config.json"]
    assert set(full[1].files) - set(tiny[1].files) == {"vae/*"}
    own = "taew2_2.safetensors" if "Wan2.2" in recipe.base else TINY_VAE_FILE
    assert set(tiny) - set(full) == {tiny[1], Wanted(TINY_VAE_REPO, (own,))}
    (whole,) = files_of.wanted_folder(recipe.base)
    assert set(full[1].files) - set(whole.files) == {"transformer/config.json"}
    with pytest.raises(ValueError, match="unknown autoencoder 'big'; known are tiny, full"):
        files_of.wanted_by(recipe, "big")


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_676_070_424, "5.7 GB")],
)
def test_sizes_are_written_for_people(size: int | None, text: str) -> None:
    assert files_of.size_text(size) == text


def test_importing_is_cheap() -> None:
    code = (
        "import sys; from stillframe.loading import hub;"
        "heavy = {'huggingface_hub', 'torch', 'typer', 'rich', 'diffusers'};"
        "sys.exit(bool(heavy & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# with a hub


def test_a_survey_knows_sizes_and_downloads_nothing(hub: Hub, online: Asker) -> None:
    hub.repos["one/survey"] = Repo(MODEL)
    wanted = _wanted("one/survey", "model_index.json", "text_encoder/*", "tokenizer/*")
    files = online("survey", wanted=wanted)
    expected = ["model_index.json", *ENCODER, "tokenizer/deep/er/words.json"]
    assert [file["name"] for file in files] == expected
    assert [file["size"] for file in files] == [len(MODEL[name]) for name in expected]
    assert not any(file["present"] for file in files)
    assert hub.downloads("one/survey") == []


def test_fetching_twice_downloads_once(hub: Hub, online: Asker) -> None:
    hub.repos["one/twice"] = Repo(MODEL)
    wanted = _wanted("one/twice", "model_index.json", "text_encoder/*")
    names = ["model_index.json", *ENCODER]
    assert online("find", repo="one/twice", file="model_index.json") is None
    assert online("find_folder", repo="one/twice", patterns=["text_encoder/*"]) is None
    done = online("fetch", wanted=wanted)
    assert [Path(path).read_bytes() for path in done["paths"]] == [MODEL[n] for n in names]
    assert sorted(hub.downloads("one/twice")) == sorted((name, None) for name in names)
    for name in names:
        heard = [(so_far, total) for file, so_far, total in done["progress"] if file == name]
        assert heard == sorted(heard)
        assert heard[0] == (0, len(MODEL[name]))
        assert heard[-1] == (len(MODEL[name]), len(MODEL[name]))
    before = len(hub.downloads("one/twice"))
    again = online("fetch", wanted=wanted)
    assert (again["paths"], again["progress"]) == (done["paths"], [])
    assert len(hub.downloads("one/twice")) == before
    folder = online("find_folder", repo="one/twice", patterns=["text_encoder/*"])
    for name, path in zip(names, done["paths"], strict=True):
        assert online("find", repo="one/twice", file=name) == path == str(Path(folder) / name)
        assert online("require", repo="one/twice", file=name, name="x") == path
    assert online("find_folder", repo="one/twice", patterns=["text_encoder/*", "vae/*"]) is None


def test_a_pinned_commit_stays_what_it_was(hub: Hub, online: Asker) -> None:
    """Its owner changes the repository before and after it is fetched."""
    then = Repo(MODEL)
    now = Repo({**MODEL, "model_index.json": b"{ 'other': 1 }"}, past=(then,))
    hub.repos["one/pinned"] = now
    pinned, latest = f"one/pinned@{then.commit}", "one/pinned"
    names = ("model_index.json", "text_encoder/*")
    (index, *_) = online("fetch", wanted=_wanted(pinned, *names))["paths"]
    assert Path(index).read_bytes() == MODEL["model_index.json"]
    assert online("find", repo=latest, file="model_index.json") is None
    (other,) = online("fetch", wanted=_wanted(latest, "model_index.json"))["paths"]
    assert Path(other).read_bytes() == now.files["model_index.json"]
    assert online("find", repo=pinned, file="model_index.json") == index
    assert online("require", repo=pinned, file="model_index.json", name="x") == index
    assert online("find_folder", repo=pinned, patterns=list(names)) == str(Path(index).parent)
    assert online("find_folder", repo=latest, patterns=list(names)) is None
    on_disk = online("on_disk", wanted=_wanted(pinned, *names))
    assert [file["name"] for file in on_disk if file["present"]] == ["model_index.json", *ENCODER]
    missing = "0" * 40
    said = _refusal(online, "fetch", wanted=_wanted(f"one/pinned@{missing}", *names))
    assert said == f"{hub.url}/one/pinned has no revision {missing}"


def test_a_new_version_is_fetched_and_what_did_not_change_is_not(hub: Hub, online: Asker) -> None:
    hub.repos["one/new"] = Repo(MODEL)
    wanted = _wanted("one/new", "text_encoder/*")
    online("fetch", wanted=wanted)
    changed = {**MODEL, "text_encoder/model-1.safetensors": b"better"}
    hub.repos["one/new"], before = Repo(changed), len(hub.downloads("one/new"))
    files = online("survey", wanted=wanted)
    assert [f["name"] for f in files if not f["present"]] == ["text_encoder/model-1.safetensors"]
    done = online("fetch", wanted=wanted)
    assert [Path(path).read_bytes() for path in done["paths"]] == [changed[n] for n in ENCODER]
    assert len(hub.downloads("one/new")) == before + 1


def test_looking_at_the_disk_asks_nobody(hub: Hub, online: Asker) -> None:
    hub.repos["one/looked-at"] = Repo(MODEL)
    wanted = _wanted("one/looked-at", "model_index.json", "text_encoder/*")
    before = len(hub.log)
    unknown = online("on_disk", wanted=wanted)
    assert [(f["name"], f["size"], f["present"]) for f in unknown] == [
        ("model_index.json", None, False),
        ("text_encoder/*", None, False),
    ]
    assert len(hub.log) == before
    online("fetch", wanted=wanted)
    before = len(hub.log)
    known = online("on_disk", wanted=wanted)
    online("find", repo="one/looked-at", file="model_index.json")
    online("find_folder", repo="one/looked-at", patterns=["*"])
    assert len(hub.log) == before
    assert [(f["name"], f["size"], f["present"]) for f in known] == [
        (name, len(MODEL[name]), True) for name in ["model_index.json", *ENCODER]
    ]


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, online: Asker) -> None:
    """To the last 10 MiB that had been received, which is what huggingface_hub writes at once."""
    content, piece = bytes(range(256)) * 50_000, 10 * 2**20
    hub.repos["one/cut"] = Repo({"model.pt": content}, cuts=[piece + 1000])
    done = online("fetch", wanted=_wanted("one/cut", "model.pt"))
    assert Path(done["paths"][0]).read_bytes() == content
    assert hub.downloads("one/cut") == [("model.pt", None), ("model.pt", f"bytes={piece}-")]
    assert done["progress"][-1] == ["model.pt", len(content), len(content)]
    assert online.complaints() == ""


def test_a_connection_that_keeps_breaking_is_one_sentence(hub: Hub, online: Asker) -> None:
    """Of that file nothing is kept; those before it are, and the next fetch completes the rest."""
    repo = hub.repos["one/broken"] = Repo(MODEL)
    wanted = _wanted("one/broken", "model_index.json", "text_encoder/*")
    online("fetch", wanted=_wanted("one/broken", "model_index.json"))
    repo.cuts = [100_000, *[20_000] * 6]  # the small file, then the next one, six times
    sentence = _refusal(online, "fetch", wanted=wanted)
    assert sentence.startswith(f"the connection to {hub.url} broke while text_encoder/model-1")
    assert online.cause == "RemoteProtocolError"
    assert not list(online.cache.rglob("*.incomplete"))
    present = {f["name"]: f["present"] for f in online("on_disk", wanted=wanted)}
    assert present == {
        "model_index.json": True,
        "text_encoder/config.json": True,
        "text_encoder/model-1.safetensors": False,
        "text_encoder/model-2.safetensors": False,
    }
    assert online("find_folder", repo="one/broken", patterns=["text_encoder/*"]) is None
    before = len(hub.downloads("one/broken"))
    done = online("fetch", wanted=wanted)
    assert [Path(p).read_bytes() for p in done["paths"]] == [MODEL[name] for name in present]
    fetched = hub.downloads("one/broken")[before:]
    assert fetched == [(name, None) for name, there in present.items() if not there]


def test_the_disk_is_checked_first(hub: Hub, online: Asker) -> None:
    size = 10**18
    hub.repos["one/huge"] = Repo(MODEL, sizes={"vae/config.json": size})
    sentence = _refusal(online, "fetch", wanted=_wanted("one/huge", "model_index.json", "vae/*"))
    assert files_of.size_text(size + len(MODEL["model_index.json"])) in sentence
    assert f"{online.cache} has room for " in sentence
    assert hub.downloads("one/huge") == []


@pytest.mark.parametrize(
    ("repo", "status", "gated", "said"),
    [
        ("one/nowhere", 404, False, "there is no model one/nowhere: "),
        ("one/private", 401, False, "one/private does not exist or is private (status 401): "),
        ("one/forbidden", 403, False, "ask for access at "),
        ("one/gated", 200, True, "ask for access at "),
        ("one/ill", 503, False, "answers with status 503 when asked for one/ill; try later"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: Hub, online: Asker, repo: str, status: int, gated: bool, said: str
) -> None:
    if status != 404:
        hub.repos[repo] = Repo(MODEL, status=status, gated=gated)
    for action in ("survey", "fetch"):
        sentence = _refusal(online, action, wanted=_wanted(repo, "model_index.json"))
        assert said in sentence
        assert (f"{hub.url}/{repo}" in sentence) == (status != 503)
        assert ("`hf auth login`" in sentence) == (gated or status in (401, 403))
        assert online.cause.endswith("Error")
    assert hub.downloads(repo) == []


def test_files_that_a_repository_does_not_have(hub: Hub, online: Asker) -> None:
    hub.repos["one/less"] = Repo({"model_index.json": b"{}"})
    for missing in ("model.pt", "vae/*"):
        wanted = _wanted("one/less", "model_index.json", missing)
        assert _refusal(online, "fetch", wanted=wanted) == f"one/less has no file {missing}"
    assert hub.downloads("one/less") == []
    given = {"repo": "one/less", "file": "model.pt", "name": "less"}
    assert "`stillframe models fetch less`" in _refusal(online, "require", **given)


@pytest.mark.parametrize("repo", ["a b/c", "a/b/c", "a/b--c"])
def test_what_is_no_hub_id_is_said_to_be_none(online: Asker, repo: str) -> None:
    said = f"{repo!r} is neither a folder nor a hub id (owner/name)"
    for action in ("survey", "on_disk", "fetch"):
        assert _refusal(online, action, wanted=_wanted(repo, "model.pt")) == said
    assert _refusal(online, "find", repo=repo, file="model.pt") == said


def test_offline_mode_uses_what_is_there(hub: Hub, online: Asker) -> None:
    hub.repos["one/offline"] = Repo(MODEL)
    wanted = _wanted("one/offline", "model_index.json", "text_encoder/*")
    done, home = online("fetch", wanted=wanted), online.cache.parents[1]
    before = len(hub.log)
    with asker(home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1") as offline:
        assert offline("fetch", wanted=wanted) == {"paths": done["paths"], "progress": []}
        assert offline("survey", wanted=wanted) == offline("on_disk", wanted=wanted)
        for repo, asked, missing in [
            ("one/offline", "vae/config.json", "vae/config.json"),
            ("one/offline", "vae/*", "vae/config.json"),  # it is known what there would be
            ("one/unknown", "vae/*", "vae/*"),
        ]:
            assert _refusal(offline, "fetch", wanted=_wanted(repo, asked)) == (
                f"offline mode is on (HF_HUB_OFFLINE), and {missing} of {repo} is not on disk"
            )
    assert len(hub.log) == before


def test_no_network_is_one_sentence(hub: Hub, online: Asker) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with asker(online.cache.parents[1], HF_ENDPOINT=url) as cut_off:
            sentence = _refusal(cut_off, "fetch", wanted=_wanted("one/far", "model.pt"))
            assert sentence.startswith(f"there is no connection to {url}, which is asked for ")


def test_a_cache_that_cannot_be_written_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.repos["one/lost"] = Repo(MODEL)
    (tmp_path / "file").touch()
    with asker(tmp_path, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "file")) as homeless:
        sentence = _refusal(homeless, "fetch", wanted=_wanted("one/lost", "vae/config.json"))
    assert str(tmp_path / "file") in sentence
    assert sentence.endswith(" cannot be used for vae/config.json of one/lost: Not a directory")


# folders


def test_a_folder_is_simply_there(tmp_path: Path) -> None:
    for name, content in MODEL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    repo = str(tmp_path)
    wanted = (Wanted(repo, ("model_index.json", "text_encoder/*", "tokenizer/*")),)
    names = ["model_index.json", *ENCODER, "tokenizer/deep/er/words.json"]
    files = [RemoteFile(repo, name, len(MODEL[name]), True) for name in names]
    assert files_of.survey(wanted) == files_of.on_disk(wanted) == files
    assert files_of.fetch(wanted) == [tmp_path / name for name in names]
    assert files_of.find_folder(repo, ["vae/*"]) == tmp_path
    assert files_of.find_folder(repo, ["vae/*", "lora/*"]) is None
    assert files_of.require(repo, "vae/config.json", "x") == tmp_path / "vae/config.json"
    lacking = (Wanted(repo, ("model.pt",)),)
    assert files_of.on_disk(lacking) == [RemoteFile(repo, "model.pt", None, False)]
    for refused in (files_of.survey, files_of.fetch):
        with pytest.raises(ModelError, match=f"^folder {tmp_path} has no file model.pt$"):
            refused(lacking)
    with pytest.raises(ModelError, match=f"^folder {tmp_path} has no file model.pt$"):
        files_of.require(repo, "model.pt", "x")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "../no/where", "~/no-where"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name: str) -> None:
    wanted = (Wanted(name, ("model.pt",)),)
    with pytest.raises(ModelError, match=r"^there is no folder .*where"):
        files_of.survey(wanted)
    assert files_of.on_disk(wanted) == [RemoteFile(name, "model.pt", None, False)]
    assert files_of.find(name, "model.pt") is None


def test_a_recipes_folders_start_from_its_file(tmp_path: Path) -> None:
    text = Path(recipes.__file__).with_suffix(".toml").read_text()
    own = tmp_path / "recipes.toml"
    own.write_text(text.replace('repo = "gdhe17/Self-Forcing"', 'repo = "./weights"'))
    recipe = recipes.read_recipes(own)["self-forcing"]
    (tmp_path / "weights" / recipe.file).parent.mkdir(parents=True)
    (tmp_path / "weights" / recipe.file).write_bytes(b"123")
    (file,) = files_of.survey(files_of.wanted_by(recipe)[:1])
    assert (file.repo, file.size, file.present) == (str(tmp_path / "weights"), 3, True)
