"""Candidates that several real processes train together: the same numbers as one process, and exact zeros."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from group_work import BEST, VARIED, TaughtTrainer, tiny_t5, train
from safetensors.torch import load_file

from sms_hf.training.processes.groups import Group, is_in_group, make_group, training_group
from sms_hf.training.processes.sharding import defer_sharding_, embeddings_in_one_piece, wants_sharding
from sms_hf.training.processes.store import Processes

ALONE = Group(0, 0, 1, Processes())
IN_TURN = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
WORK = Path(__file__).with_name("group_work.py")


def launch(what, folder, processes=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        str(WORK),
    ]
    folder.mkdir()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, what, str(folder)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def notes(folder):
    """What each process wrote down, by its rank."""
    return [dict(json.loads(line) for line in path.read_text().splitlines()) for path in sorted(folder.glob("?.jsonl"))]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def ran(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / request.param
    result = launch(request.param, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    both = notes(folder)
    assert len(both) == 2
    return request.param, folder, both


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process that takes the batches of both, and one that takes them one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {
        "halves": train(ALONE, "halves", folder),
        # Targets differ between the halves of a batch: as in accumulation, each half's mean counts the same.
        "best": train(ALONE, "best", folder, **BEST, lengths=VARIED, **IN_TURN),
        "causal": train(ALONE, "causal", folder, lengths=VARIED, causal=True),
        "taught": train(ALONE, "taught", folder, lengths=VARIED, causal=True, cls=TaughtTrainer, **IN_TURN),
        "gmp": train(ALONE, "gmp", folder, gradual="gmp"),
        "dpf": train(ALONE, "dpf", folder, gradual="dpf"),
    }
    return folder, runs


def names(kind):
    return ["halves", "best", "causal", "taught", "gmp", "dpf"] if kind == "ddp" else ["halves", "best"]


def test_no_thread_of_a_group_outlives_python(ran):
    """One that frees a tensor after that ends its process with SIGABRT (pytorch/pytorch#38228)."""
    what, folder, _ = ran
    if what == "fsdp":
        pytest.skip("DTensor's caches hold the group until the end")
    threads = [path.read_text() for path in folder.glob("?.threads")]
    assert len(threads) == 2
    assert not any("gloo" in names for names in threads)


def test_a_group_trains_as_one_process_does_with_the_batches_of_all(ran, alone):
    kind, folder, both = ran
    for name in names(kind):
        ours, theirs = load_file(folder / f"{name}.safetensors"), load_file(alone[0] / f"{name}.safetensors")
        assert set(ours) == set(theirs)
        for tensor in ours:
            torch.testing.assert_close(ours[tensor], theirs[tensor], atol=2e-5, rtol=1e-4, msg=f"{name}: {tensor}")
        # Reduced once, over all processes, without what is pruned: DPF alone takes the gradient of the dense model.
        assert both[0][name]["norms"] == pytest.approx(alone[1][name]["norms"], rel=1e-4)
        assert both[0][name]["fingerprint"] == both[1][name]["fingerprint"] == alone[1][name]["fingerprint"]


def test_all_processes_hold_the_same_weights_after_every_step(ran):
    kind, _, both = ran
    for name in names(kind):
        assert len(both[0][name]["sums"]) == 12, "the callback has checked the zeros twelve times"
        if kind == "ddp":
            assert both[0][name]["sums"] == both[1][name]["sums"]
            assert both[0][name]["sharded"] == 0
        else:  # Halves of the same tensors.
            total = [a + b for a, b in zip(both[0][name]["sums"], both[1][name]["sums"], strict=True)]
            whole = load_file(ran[1] / f"{name}.safetensors").values()
            assert total[-1] == pytest.approx(sum(float(w.double().sum()) for w in whole), rel=1e-5)
            assert both[0][name]["sharded"] == len(list(tiny_t5().parameters()))


def test_evaluation_counts_every_row_once(ran, alone):
    kind, _, both = ran
    for name in names(kind):
        reference = alone[1][name]
        assert reference["rows"] == 7
        for process in both:
            assert process[name]["rows"] == 7
            assert process[name]["tokens"] == reference["tokens"]
            assert process[name]["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert both[0][name]["loss"] == both[1][name]["loss"]
    assert both[0]["best"]["best"] == both[1]["best"]["best"] == pytest.approx(alone[1]["best"]["best"], rel=1e-5)


def test_resume_is_bit_identical_with_dropout(ran):
    _, folder, both = ran
    whole, resumed = load_file(folder / "whole.safetensors"), load_file(folder / "whole-resumed.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for process in both:
        assert process["resumed"]["resumed"] == str(folder / "whole" / "checkpoint-2"), "the damaged one is passed over"
        assert process["resumed"]["norms"] == process["whole"]["norms"][2:]
    states = {path.name for path in (folder / "whole" / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "masks.safetensors", "model.safetensors"} <= states


def test_dropout_differs_from_none(ran):
    """Lest the comparison above compared runs without random numbers."""
    assert ran[2][0]["whole"]["norms"] != ran[2][0]["halves"]["norms"]


@pytest.mark.parametrize("ran", ["fsdp"], indirect=True)
def test_what_fsdp_cannot_do_is_refused(ran):
    _, _, both = ran
    assert "Accelerate would train by DDP" in both[0]["silent"]
    assert "prunes while it trains" in both[0]["gradual"]


@pytest.mark.parametrize("ran", ["fsdp"], indirect=True)
def test_shares_of_different_size(ran):
    # Three rows of five on process 0, two on process 1; NaN is left where weights are kept.
    (kept, error), (other_kept, other_error) = (process["uneven"] for process in ran[2])
    assert (kept, other_kept) == (5, 3)
    assert "4 are not, first at [(0, 1), (1, 0), (1, 2)]" in error
    assert "3 are not, first at [(0, 0), (0, 2), (1, 1)]" in other_error


def test_groups_side_by_side_give_what_one_group_gives(tmp_path):
    made = []
    for processes in (2, 4):
        folder = tmp_path / str(processes)
        result = launch("candidates", folder, processes)
        assert result.returncode == 0, result.stderr[-3000:]
        assert len(notes(folder)) == processes
        made.append({path.name: path.read_bytes() for path in folder.glob("*.safetensors")})
    assert sorted(made[0]) == [f"candidate-{number}.safetensors" for number in range(3)]
    assert len(set(made[0].values())) == 3
    assert made[0] == made[1]


def test_a_process_that_fails_does_not_leave_the_others_waiting(tmp_path):
    result = launch("failing", tmp_path / "failing")
    assert result.returncode != 0
    assert "'NoneType' object is not callable" in result.stderr
    assert not list((tmp_path / "failing").glob("*.jsonl"))


# ---- One process -----------------------------------------------------------------------------------------------------


def test_a_group_of_one_changes_nothing():
    before = dict(os.environ)
    with training_group(make_group(Processes(), 1), "alone", cpu=True):
        assert dict(os.environ) == before
        assert not is_in_group()
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("world", "size"), [(1, 2), (3, 2), (2, 0)])
def test_groups_divide_the_processes(world, size):
    with pytest.raises(ValueError, match="candidate_processes must divide the number of processes"):
        make_group(Processes(0, world), size)


def test_groups_are_neighbours():
    groups = [make_group(Processes(rank, 6), 2) for rank in range(6)]
    assert [(group.number, group.rank) for group in groups] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [group.is_leader for group in groups] == [True, False] * 3


def test_sharding_waits_for_a_group(monkeypatch):
    args = SimpleNamespace(fsdp=True, fsdp_config={"fsdp_version": 2})
    defer_sharding_(args)
    assert not args.fsdp, "Trainer refuses it in a single process"
    assert wants_sharding(args)
    again = SimpleNamespace(fsdp=args.fsdp, fsdp_config=args.fsdp_config)
    defer_sharding_(again)
    assert wants_sharding(again), "dataclasses.replace keeps it"
    monkeypatch.setattr("sms_hf.training.processes.groups._active", ALONE)
    defer_sharding_(again)
    assert (again.fsdp, again.fsdp_config) == (True, {"fsdp_version": 2})


@pytest.mark.parametrize("config", [{"version": 1}, {"fsdp_version": "1"}, {"xla": True}])
def test_other_fsdp_is_refused(config):
    with pytest.raises(ValueError, match="Expected FSDP of version 2"):
        defer_sharding_(SimpleNamespace(fsdp="full_shard", fsdp_config=config))


def test_no_sharding_is_left_alone():
    args = SimpleNamespace(fsdp=None, fsdp_config=None)
    defer_sharding_(args)
    assert vars(args) == {"fsdp": None, "fsdp_config": None}
    assert not wants_sharding(args)


def test_embeddings_that_many_modules_share_are_hidden_while_sharding():
    model = tiny_t5()
    with embeddings_in_one_piece(model):
        assert model.get_input_embeddings() is None
        assert model.get_output_embeddings() is None
    assert model.get_input_embeddings() is model.shared
    assert not {"get_input_embeddings", "get_output_embeddings"} & set(vars(model))


def test_a_process_group_of_somebody_else_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with (
            pytest.raises(RuntimeError, match="Expected a launch without a process group"),
            training_group(Group(0, 0, 2, Processes(0, 2)), "candidate-1", cpu=True),
        ):
            pass
        assert dist.is_initialized(), "it is not ours to end"
    finally:
        dist.destroy_process_group()
