"""Stochastic depth: its mean, and the same numbers in one process and in two."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from training.models.drop_path import DropPath, growing_rates

IMAGES = 32


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (2, 2, 2)])
def test_whole_samples_are_dropped_and_the_mean_kept(shape):
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    dropped = drop(torch.ones(8192, *shape)).flatten(1) if shape else drop(torch.ones(8192, 1))
    values = dropped[:, 0]
    assert torch.equal(dropped, values[:, None].expand_as(dropped))
    torch.testing.assert_close(values.unique(), torch.tensor([0.0, 4 / 3]))
    assert values.mean().item() == pytest.approx(1.0, abs=0.03)


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    residual = torch.randn(4096, 3)
    state = torch.get_rng_state()
    assert DropPath(0.5).eval()(residual) is residual
    assert DropPath(0.0).train()(residual) is residual
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_stays_half():
    assert DropPath(0.5).train()(torch.ones(8, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
        DropPath(rate)


def test_it_adds_nothing_to_a_checkpoint():
    assert DropPath(0.5).state_dict() == {}


def test_rates_grow_in_equal_steps():
    assert growing_rates(0.1, 5) == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert growing_rates(0.1, 1) == [0.0]


def share(rank, world, rendezvous, results):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.manual_seed(0)
    torch.save(DropPath(0.5).train()(torch.ones(IMAGES // world)), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_drop_what_one_does(tmp_path):
    mp.spawn(share, args=(2, tmp_path / "rendezvous", tmp_path), nprocs=2)
    torch.manual_seed(0)
    alone = DropPath(0.5).train()(torch.ones(IMAGES))
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone[rank::2])
    assert len(alone.unique()) == 2
