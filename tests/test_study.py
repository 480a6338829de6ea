"""A study: what may be compared, what is shown where, how votes are kept, and what is sent."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
from tests.study_fixtures import make_clip, make_folder
from tests.video_samples import decode

from stillframe.errors import InputError, OutputError
from stillframe.study.layout import read_layout
from stillframe.study.media import media_type, padded, padded_size
from stillframe.study.participants import OutdatedError, Participants, named
from stillframe.study.plan import Trial, make_plan, trial_id
from stillframe.study.playable import CACHE, make_playable, unplayable
from stillframe.study.votes import Vote, VoteFile, read_votes

CLIPS = [f"clip{number}" for number in range(51)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


# layout


def test_folders_of_any_name_are_methods_and_other_files_are_left_alone(folder: Path) -> None:
    (folder / "dense" / "batch.jsonl").write_text("{}\n")
    (folder / "notes").mkdir()
    shutil.copytree(folder / "dense", folder / "source")
    (folder / "source" / "c.mp4").rename(folder / "source" / "c.m4v")
    layout = read_layout(folder)
    assert layout.methods == ("dense", "pruned")
    assert [clip.name for clip in layout.clips] == ["a", "b", "c"]
    assert [clip.source for clip in layout.clips] == [
        folder / "source" / name for name in ("a.mp4", "b.mp4", "c.m4v")
    ]
    assert layout.clips[0].seconds == pytest.approx(6 / 25)


def test_every_two_of_three_methods_are_compared() -> None:
    plan = make_plan(CLIPS, "xyz", "anna", 1)
    assert {trial.key for trial in plan} == {
        (clip, *pair) for clip in CLIPS for pair in combinations("xyz", 2)
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: shutil.rmtree(f / "dense"), r"has 1 folders of videos and .* 2 or more"),
        (lambda f: (f / "dense" / "b.mp4").unlink(), r"dense has 2 of 3 videos: b is missing"),
        (lambda f: make_clip(f / "source" / "a.mp4"), r"source has 1 of 3 videos: b, c is missing"),
        (
            lambda f: make_clip(f / "dense" / "b.mp4", size=(80, 48)),
            r"b cannot be compared: it is 80x48, 6 frames .* and 64x48, 6 frames",
        ),
        (lambda f: make_clip(f / "dense" / "b.mp4", 5), r"48, 5 frames at 25 a second in dense,"),
        (
            lambda f: make_clip(f / "dense" / "b.mp4", time_base=Fraction(1, 24)),
            r"6 frames at 24\S* a second in dense",
        ),
        (lambda f: make_clip(f / "dense" / "b.mkv"), r"has 2 videos named b: b.mkv and b.mp4"),
        (lambda f: (f / "dense" / "b.mp4").write_text("no"), r"b.mp4 \(2 bytes\) is not a video"),
        (shutil.rmtree, r"study is not a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_numbers(
    folder: Path, change: object, told: str
) -> None:
    assert callable(change)
    change(folder)
    with pytest.raises(InputError, match=told):
        read_layout(folder)


def test_both_sides_of_a_clip_are_written_anew_if_one_does_not_play(folder: Path) -> None:
    (folder / "dense" / "b.mp4").unlink()
    make_clip(folder / "dense" / "b.avi", codec="mpeg4", options={"qscale": "2"})
    layout = read_layout(folder)
    files = unplayable(layout)
    assert sorted(files) == [folder / "dense" / "b.avi", folder / "pruned" / "b.mp4"]
    shown = make_playable(layout, files).clips
    assert shown[0] == layout.clips[0]
    assert [path.parent for path in shown[1].files.values()] == [folder / CACHE] * 2
    for method, path in shown[1].files.items():
        before, after = decode(layout.clips[1].files[method]), decode(path)
        assert len(after) == len(before)
        for (then, old), (now, new) in zip(before, after, strict=True):
            assert float(now) == pytest.approx(float(then), abs=0.001)
            assert abs(old.astype(int) - new.astype(int)).mean() < 2
    # the copies play, and are made once
    seen: list[Path] = []
    make_playable(layout, files, seen.append)
    assert not seen
    make_clip(folder / "dense" / "b.avi", codec="mpeg4", options={"qscale": "9"})
    layout = read_layout(folder)
    make_playable(layout, unplayable(layout), seen.append)
    assert seen == [folder / "dense" / "b.avi"]
    assert len(list((folder / CACHE).iterdir())) == 2


# plan


def test_each_method_is_on_the_left_in_half_of_the_pairs() -> None:
    orders = set()
    for seed in range(20):
        plan = make_plan(CLIPS, "xyz", "anna", seed)
        for pair in combinations("xyz", 2):
            left = Counter(trial.left for trial in plan if trial.key[1:] == pair)
            assert sorted(left.values()) == [25, 26]
        orders.add(tuple(plan))
        assert plan == make_plan(CLIPS, "xyz", "anna", seed)
    assert len(orders) == 20


def test_over_participants_sides_and_places_of_a_pair_are_even() -> None:
    plans = [make_plan(CLIPS[:3], "xy", f"visitor {number}", 7) for number in range(900)]
    firsts = Counter(plan[0] for plan in plans)
    # each of six: mean 150, standard deviation 11
    assert len(firsts) == 6
    assert max(abs(count - 150) for count in firsts.values()) < 50


def test_checks_are_of_one_file_and_of_different_clips() -> None:
    plan = make_plan(CLIPS, "xy", "anna", 3, checks=5)
    checks = [trial for trial in plan if trial.is_check]
    assert len(plan) == 56
    assert len({trial.clip for trial in checks}) == 5
    assert [trial for trial in plan if not trial.is_check][-1] is not plan[50]
    with pytest.raises(ValueError, match="there are 2 clips for checks, got 3 checks"):
        make_plan(CLIPS[:2], "xy", "anna", 3, checks=3)


def test_a_trial_has_another_name_for_each_participant_and_seed() -> None:
    trials = [Trial("a", "x", "y"), Trial("a", "y", "x"), Trial("b", "x", "y")]
    names = [
        trial_id(trial, who, seed) for trial in trials for who in ("anna", "ben") for seed in (1, 2)
    ]
    assert len(set(names)) == 12
    assert all(re.fullmatch("[0-9a-f]{20}", name) for name in names)


# participants and votes


def test_names_that_differ_in_case_or_spaces_are_one() -> None:
    assert named(" Anna  B ") == named("anna b") == "anna b"
    assert named("") != named("")
    for wrong in ("x" * 41, "a\u202eb", "a\x00"):
        with pytest.raises(ValueError, match="a name has at most 40 letters"):
            named(wrong)


def opened(folder: Path, checks: int = 0) -> tuple[Participants, VoteFile]:
    votes = VoteFile(folder / "votes.jsonl", 5)
    return Participants(read_layout(folder), votes, checks), votes


def test_one_vote_may_be_taken_back_and_no_second_one(folder: Path) -> None:
    study, votes = opened(folder)
    first = study.state("anna")
    study.vote("anna", first["trial"]["id"], "left", 2.5, 1)
    second = study.state("anna")
    assert (second["done"], second["total"], second["may_undo"]) == (1, 3, True)
    study.vote("anna", second["trial"]["id"], "same", 1.0, 0)
    study.take_back("anna")
    again = study.state("anna")
    assert again == {**second, "may_undo": False}
    with pytest.raises(OutdatedError, match="no vote to take back"):
        study.take_back("anna")
    study.vote("anna", again["trial"]["id"], "right", 1.0, 0)
    assert [vote.vote for vote in votes.ballots.of("anna")] == ["left", "right"]
    votes.close()
    # who was away goes on, and the file says the same
    study, votes = opened(folder)
    assert study.state("anna")["done"] == 2
    assert study.state("ben")["done"] == 0
    assert [vote.vote for vote in read_votes(votes.path).of("anna")] == ["left", "right"]
    kept = votes.ballots.of("anna")[0]
    assert (kept.seconds, kept.loops) == (2.5, 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", kept.time)
    votes.close()


def test_a_pair_is_judged_once_however_often_the_page_is_open(folder: Path) -> None:
    study, votes = opened(folder)
    shown = study.state("anna")["trial"]["id"]
    study.vote("anna", shown, "left", 1.0, 0)
    for stale in (shown, "0" * 20):
        with pytest.raises(OutdatedError, match="not the next one"):
            study.vote("anna", stale, "left", 1.0, 0)
    assert len(votes.ballots.all) == 1
    votes.close()


def test_a_clip_that_comes_or_goes_leaves_votes_as_they_are(folder: Path) -> None:
    study, votes = opened(folder)
    study.vote("anna", study.state("anna")["trial"]["id"], "left", 1.0, 0)
    votes.close()
    for method in ("dense", "pruned"):
        make_clip(folder / method / "d.mp4")
    study, votes = opened(folder)
    assert (study.state("anna")["done"], study.state("anna")["total"]) == (1, 4)
    votes.close()


def test_a_torn_last_line_is_left_out_and_another_one_is_told(folder: Path) -> None:
    study, votes = opened(folder)
    study.vote("anna", study.state("anna")["trial"]["id"], "left", 1.0, 0)
    votes.close()
    whole = votes.path.read_bytes()
    kept = whole.splitlines()[1]
    for torn in (b'{"event": "vote", "participant": "an', b"\0\0", kept, kept[:-1] + b" " * 999):
        votes.path.write_bytes(whole + torn)
        assert len(read_votes(votes.path).all) == 1
        study, votes = opened(folder)
        study.vote("anna", study.state("anna")["trial"]["id"], "same", 1.0, 0)
        votes.close()
        assert len(votes.path.read_bytes().splitlines()) == 3
        assert [vote.vote for vote in read_votes(votes.path).all] == ["left", "same"]
    wrong = [b"{}", b"[]", b'{"event": "vote", "participant": "x"}', b"{" * 40_000, b'"\xff"']
    wrong += [b'{"event":"vote","participant":"x","clip":"a","left":"x","right":"y","vote":"up"}']
    for line in wrong:
        votes.path.write_bytes(whole + line + b"\n" + whole)
        with pytest.raises(InputError, match=r"votes.jsonl line 3 is not of a study: "):
            read_votes(votes.path)


def test_two_processes_do_not_keep_votes_in_one_file(folder: Path) -> None:
    votes = VoteFile(folder / "votes.jsonl")
    with pytest.raises(OutputError, match="is in use by another study"):
        VoteFile(folder / "votes.jsonl")
    votes.close()
    VoteFile(folder / "votes.jsonl").close()
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        VoteFile(folder / "nowhere" / "votes.jsonl")


def test_a_seed_is_drawn_once_and_kept(folder: Path) -> None:
    seeds = []
    for _ in range(2):
        votes = VoteFile(folder / "votes.jsonl")
        seeds.append(votes.seed)
        votes.close()
    assert seeds[0] == seeds[1]
    assert json.loads(votes.path.read_text()) == {"event": "study", "seed": seeds[0]}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_vote_that_cannot_be_written_does_not_count(folder: Path) -> None:
    study, votes = opened(folder)
    good = os.dup(votes._file._file.fileno())
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, votes._file._file.fileno())
    shown = study.state("anna")
    with pytest.raises(OutputError, match=r"votes.jsonl cannot be written"):
        study.vote("anna", shown["trial"]["id"], "left", 1.0, 0)
    assert study.state("anna") == shown
    os.dup2(good, votes._file._file.fileno())
    study.vote("anna", shown["trial"]["id"], "left", 1.0, 0)
    votes.close()
    assert len(read_votes(votes.path).all) == 1
    for descriptor in (good, full):
        os.close(descriptor)


def test_the_latest_vote_on_a_pair_counts(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    votes.add(Vote("anna", "a", "x", "y", "left"))
    votes.add(Vote("anna", "a", "y", "x", "same"))
    assert [vote.vote for vote in votes.ballots.all] == ["same"]
    votes.close()


# what is sent


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_file_that_is_filled_up_has_the_same_pictures(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = make_clip(tmp_path / name, codec=codec)
    for larger in (0, path.stat().st_size + 1, path.stat().st_size + 3_000_000):
        size = padded_size(path, larger)
        sent = b"".join(padded(path, size))
        assert len(sent) == size >= path.stat().st_size + 16
        copy = tmp_path / f"copy-{name}"
        copy.write_bytes(sent)
        pairs = zip(decode(path), decode(copy), strict=True)
        assert all(then == now and (old == new).all() for (then, old), (now, new) in pairs)
    assert media_type(path) == f"video/{name[2:]}"
