"""Training in several processes against training in one, on all their batches."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training.loop import Training
from training.ranks import Ranks

COUNT = 2


def batch(rank: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(10 + rank))


def trained(folder: Path, ranks: Ranks, seed: int) -> Training:
    torch.manual_seed(seed)
    module = nn.Linear(3, 2)
    optimiser = torch.optim.SGD(module.parameters())
    made = Training("test", module, optimiser, folder / "state.pt", (60, 60), ranks, most=1e9)
    made.restart_average()
    return made


def one_process(rank: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(COUNT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": (folder / "port").read_text(),
    }
    torch.set_num_threads(1)
    ranks = Ranks("cpu")
    training = trained(folder, ranks, seed=rank)
    for _ in range(3):
        training.learn(training.module(batch(rank)).square().mean(), 0.1)
    training.save()
    told = {
        "weights": list(training.module.parameters()),
        "agreed": ranks.agree(7.0 + rank),
        "share": ranks.share(list(range(5))),
        "drawn": training.rng.random(),
    }
    torch.save(told, folder / f"{rank}.pt")
    ranks.wait()


def test_processes_train_as_one_on_all_their_batches(tmp_path: Path) -> None:
    from benchmarks.live_loop import free_port

    (tmp_path / "port").write_text(str(free_port()))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_process, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(COUNT))

    (tmp_path / "alone").mkdir()
    alone = trained(tmp_path / "alone", Ranks("cpu"), seed=0)
    for _ in range(3):
        alone.learn(alone.module(torch.cat([batch(0), batch(1)])).square().mean(), 0.1)
    for ours, theirs, expected in zip(
        first["weights"], second["weights"], alone.module.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, expected)
    assert first["agreed"] == second["agreed"] == 7.0
    assert sorted(first["share"] + second["share"]) == [0, 1, 2, 3, 4]
    assert first["drawn"] != second["drawn"]  # other batches
    resumed = trained(tmp_path, Ranks("cpu"), seed=5)
    assert resumed.step == 3


def test_a_run_that_diverges_stops(tmp_path: Path) -> None:
    training = trained(tmp_path, Ranks("cpu"), seed=0)
    training.budget.chunk = 0.01
    with pytest.raises(FloatingPointError, match="diverged"):
        training.run(lambda: {"loss": torch.tensor(float("nan"))})
    assert not training.path.exists()
