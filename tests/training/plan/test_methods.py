"""Every method as its phases: literal plans, equal budgets, and what the methods have in common."""

import pytest

from sms_hf.training.plan.methods import METHODS, Request, make_plan


def request(m=3, **changes):
    settings = {"target_sparsity": 0.75, "num_phases": 2, "num_train_epochs": 4.0}
    return Request(**settings | {"variants": [{"seed": 7 + i} for i in range(m)]} | changes)


def plan(method, m=3, **changes):
    return make_plan(method, request(m, **changes))


def sparsities(phases):
    return [phase.sparsity for phase in phases]


def overrides(phase):
    return [candidate.overrides for candidate in phase.candidates]


def epochs(method, **changes):
    """Epochs of retraining in all, over candidates and phases."""
    settings = [o for phase in plan(method, **changes) for o in overrides(phase)]
    return sum(o.get("num_train_epochs", 4.0) for o in settings)


def test_soups_move_on_with_their_seeds():
    first, second = plan("sms")
    assert sparsities([first, second]) == [0.5, 0.75]
    assert overrides(first) == [{"seed": 7}, {"seed": 8}, {"seed": 9}]
    assert overrides(second) == [{"seed": 1007}, {"seed": 1008}, {"seed": 1009}]
    assert [candidate.name for candidate in first.candidates] == ["candidate-1", "candidate-2", "candidate-3"]


def test_one_candidate_is_imp_and_one_times_as_long_is_as_long():
    assert plan("sms", m=1) == plan("imp", m=1) == plan("imp-mx", m=1) == plan("imp", m=5)


def test_imp_is_m_times_as_long_and_so_is_its_warm_up():
    assert overrides(plan("imp-mx")[1]) == [{"seed": 1007, "num_train_epochs": 12.0}]
    assert overrides(plan("imp-mx", warmup_steps=100)[0]) == [
        {"seed": 7, "num_train_epochs": 12.0, "warmup_steps": 300}
    ]
    assert overrides(plan("imp-mx", max_steps=50)[0]) == [{"seed": 7, "max_steps": 150}]
    assert sparsities(plan("imp-mx")) == sparsities(plan("imp")), "the pruned fractions are those of IMP"


def test_one_shot_and_pruned_have_one_phase():
    (phase,) = plan("one-shot")
    assert (phase.sparsity, overrides(phase)) == (0.75, [{"seed": 7}])
    (phase,) = plan("pruned")
    assert (phase.sparsity, overrides(phase)) == (0.75, [{"seed": 7, "num_train_epochs": 0.0, "max_steps": -1}])


@pytest.mark.parametrize(("method", "merge"), [("imp-reprune", "reprune"), ("imp-avg", "average")])
def test_separate_runs_meet_in_the_last_phase_alone(method, merge):
    first, second = plan(method)
    assert (first.own_parents, first.merge) == (False, "none")
    assert (second.own_parents, second.merge) == (True, merge)
    assert len(first.candidates) == len(second.candidates) == 3
    (only,) = plan(method, num_phases=1)
    assert (only.own_parents, only.merge) == (False, merge)


def test_gradual_pruning_ends_when_just_over_half_is_trained():
    """Twelve events, the last of them at 55 %, unless the user says otherwise."""
    (phase,) = plan("gmp")
    assert [round(fraction, 6) for fraction, _ in phase.events] == [round(0.55 * j / 12, 6) for j in range(1, 13)]
    assert phase.events[-1][1] == 0.75
    assert plan("gmp", pruning_end=0.3)[0].events[-1] == (pytest.approx(0.3), 0.75)
    # An event every 2 of 8 epochs, none after 5: at 2 and at 4.
    both = plan("gmp", pruning_end=5 / 8, pruning_interval=2.0)[0].events
    assert [fraction for fraction, _ in both] == pytest.approx([0.25, 0.5])


def test_gmp_is_m_times_as_long():
    (phase,) = plan("gmp-mx")
    assert overrides(phase) == [{"seed": 7, "num_train_epochs": 24.0}]
    assert phase.events == plan("gmp")[0].events
    assert plan("gmp-mx", m=1) == plan("gmp", m=1)


def test_copies_finish_what_gmp_began():
    trunk, branches = plan("gmp-soup", pruning_end=0.5, warmup_steps=40)
    assert (trunk.sparsity, trunk.final_sparsity, branches.sparsity) == (0.0, 0.75, 0.75)
    assert (trunk.is_trunk, trunk.goes_on, branches.is_trunk, branches.goes_on) == (True, False, False, True)
    assert (trunk.window, branches.window) == ((0.0, 0.5), (0.5, 1.0))
    assert trunk.events[-1] == (1.0, 0.75)
    assert overrides(trunk) == [{"seed": 7, "warmup_steps": 80}], "4 epochs, as the arguments say"
    assert overrides(branches)[1] == {"seed": 1008, "warmup_steps": 80}
    assert len(branches.candidates) == 3
    assert epochs("gmp-soup", pruning_end=0.5) == 0.5 * 8 + 3 * 0.5 * 8


def test_candidates_share_a_part_of_each_phase():
    first, second, third, fourth = plan("sms", shared_fraction=0.75)
    assert sparsities([first, second, third, fourth]) == [0.5, 0.5, 0.75, 0.75]
    # Three quarters of 3 x 4 epochs as one, then 1 each: a path of 10.
    assert overrides(first) == [{"seed": 7, "num_train_epochs": 9.0}]
    assert overrides(second) == [{"seed": 1007 + i, "num_train_epochs": 1.0} for i in range(3)]
    assert (first.window, second.window) == ((0.0, 0.9), (0.9, 1.0))
    assert [phase.is_trunk for phase in (first, second, third, fourth)] == [True, False, True, False]
    assert epochs("sms", shared_fraction=0.75) == epochs("sms")
    assert plan("sms", shared_fraction=0.0) == plan("sms")


def test_several_processes_train_what_candidates_share():
    trunk, branches, *later = plan("sms", shared_fraction=0.75, trunk_processes=3)
    # As many epochs, in a third of the steps: of the path of 3 + 1 parts three are behind the candidates when they part.
    assert overrides(trunk) == [{"seed": 7, "num_train_epochs": 9.0}]
    assert overrides(branches) == [{"seed": 1007 + i, "num_train_epochs": 1.0} for i in range(3)]
    assert (trunk.window, branches.window) == ((0.0, 0.75), (0.75, 1.0))
    assert [phase.batches for phase in (trunk, branches, *later)] == [3, 1, 3, 1]
    assert epochs("sms", shared_fraction=0.75, trunk_processes=3) == epochs("sms")
    trunk, branches, *_ = plan("sms", shared_fraction=0.75, trunk_processes=3, max_steps=40, warmup_steps=8)
    assert overrides(trunk)[0]["max_steps"] == 30
    assert overrides(branches)[0] == {"seed": 1007, "max_steps": 10, "warmup_steps": 8}


def test_several_processes_train_what_gmp_soup_prunes_in_as_many_steps():
    alone, _ = plan("gmp-soup", pruning_end=0.5)
    trunk, branches = plan("gmp-soup", pruning_end=0.5, trunk_processes=3)
    assert overrides(trunk) == [{"seed": 7, "num_train_epochs": 12.0}]
    assert (trunk.window, trunk.events, trunk.batches) == (alone.window, alone.events, 3)
    assert (branches.window, branches.batches) == ((0.5, 1.0), 1)
    assert epochs("gmp-soup", pruning_end=0.5, trunk_processes=3) == epochs("sms") == 24
    trunk, _ = plan("gmp-soup", pruning_end=0.25, trunk_processes=3, max_steps=40)
    assert overrides(trunk)[0]["max_steps"] == 20, "a quarter of two phases"


def test_candidates_are_averaged_within_a_phase():
    phases = plan("sms", averaging_rounds=2, warmup_steps=40)
    assert sparsities(phases) == [0.5, 0.5, 0.75, 0.75]
    assert [phase.window for phase in phases] == [(0.0, 0.5), (0.5, 1.0)] * 2
    assert [(phase.goes_on, phase.keeps_optimizers) for phase in phases] == [(False, True), (True, False)] * 2
    assert not any(phase.is_trunk for phase in phases)
    assert overrides(phases[1]) == [{"seed": 1007 + i, "num_train_epochs": 2.0, "warmup_steps": 40} for i in range(3)]
    assert epochs("sms", averaging_rounds=2) == epochs("sms")
    assert plan("sms", averaging_rounds=1) == plan("sms")
    with pytest.raises(ValueError, match="averaging_rounds must be at least 1, and 1 with shared_fraction, got 2"):
        plan("sms", averaging_rounds=2, shared_fraction=0.5)
    with pytest.raises(ValueError, match="averaging_rounds is for pruning_method='sms', got 'imp'"):
        plan("imp", averaging_rounds=2)
    assert {phase.outer_step for phase in plan("sms", averaging_rounds=2, outer_step=[0.7, 0.9])} == {(0.7, 0.9)}
    assert {phase.outer_step for phase in phases} == {None}


@pytest.mark.parametrize("step", [[0.7], [0.0, 0.9], [0.7, 1.0], [0.7, -0.1], [1, 2, 3]])
def test_an_outer_step_that_makes_no_sense_is_refused(step):
    with pytest.raises(ValueError, match="outer_step must be a learning rate above 0 and a momentum in"):
        plan("sms", averaging_rounds=2, outer_step=step)
    with pytest.raises(ValueError, match="with averaging_rounds above 1, got"):
        plan("sms", outer_step=[0.7, 0.9])


@pytest.mark.parametrize("method", ["imp", "imp-mx", "sms", "imp-reprune"])
def test_phases_may_be_of_other_lengths(method):
    first, second = plan(method, phase_shares=[0.25, 0.75])
    factor = 3 if method == "imp-mx" else 1
    assert overrides(first)[0]["num_train_epochs"] == 2.0 * factor
    assert overrides(second)[0]["num_train_epochs"] == 6.0 * factor
    assert epochs(method, phase_shares=[0.25, 0.75]) == epochs(method)
    assert plan(method, phase_shares=[0.5, 0.5]) == plan(method)


@pytest.mark.parametrize("method", ["gmp", "dpf"])
def test_gradual_pruning_is_one_training_of_the_whole_budget(method):
    # T = 10 epochs, an event every 2: the oracle of the cubic schedule.
    (phase,) = plan(method, target_sparsity=0.9, num_phases=2, num_train_epochs=5.0, pruning_interval=2.0)
    assert overrides(phase) == [{"seed": 7, "num_train_epochs": 10.0}]
    assert phase.sparsity == 0.0
    assert phase.final_sparsity == 0.9
    assert phase.feedback == (method == "dpf")
    expected = [(0.2, 0.5203125), (0.4, 0.7875), (0.6, 0.8859375), (0.8, 0.9)]
    assert phase.events == tuple((pytest.approx(f), pytest.approx(s)) for f, s in expected)


def test_gradual_pruning_with_soups_goes_through_one_schedule_in_segments():
    phases = plan("gmp-sms")
    assert sparsities(phases) == [0.0, pytest.approx(0.65625), 0.75]  # 0.75 - 0.75 (1 - 1/2)^3
    assert [phase.window for phase in phases] == [
        (0.0, pytest.approx(1 / 3)),
        pytest.approx((1 / 3, 2 / 3)),
        (pytest.approx(2 / 3), 1),
    ]
    assert [len(phase.candidates) for phase in phases] == [3, 3, 3]
    assert overrides(phases[0])[0] == {"seed": 7, "num_train_epochs": pytest.approx(8 / 3)}
    assert not any(phase.events for phase in phases)


def test_feedback_with_soups_keeps_dense_weights_until_the_last_segment():
    first, middle, last = plan("dpf-sms")
    assert (first.feedback, first.keeps_dense) == (False, False), "nothing is pruned yet"
    assert (middle.feedback, middle.keeps_dense) == (True, True)
    assert middle.events == ((0.0, middle.sparsity),)
    assert (last.feedback, last.keeps_dense, last.events) == (False, False, ())


@pytest.mark.parametrize(("method", "count"), [("bimp", 1), ("bimp-sms", 3)])
def test_bimp_spends_half_of_its_budget_dense_and_the_rest_with_allr(method, count):
    dense, *phases = plan(method)
    assert (dense.sparsity, overrides(dense)) == (0.0, [{"seed": 7}]), "4 of 8 epochs"
    assert sparsities(phases) == [0.5, 0.75]
    assert [phase.number for phase in phases] == [2, 3]
    assert [len(phase.candidates) for phase in phases] == [count, count]
    assert overrides(phases[0])[0] == {
        "retrain_schedule": "allr",
        "original_num_epochs": 4.0,
        "seed": 1007,
        "num_train_epochs": 2.0,
    }
    assert overrides(plan(method, dense_train_epochs=6.0)[1])[0]["num_train_epochs"] == 1.0
    assert overrides(plan(method, original_num_epochs=90.0)[1])[0]["original_num_epochs"] == 90.0


def test_budgets_are_equal():
    one = {method: epochs(method) for method in ("imp", "gmp", "dpf", "bimp")}
    assert one == {method: pytest.approx(8.0) for method in one}
    several = {method: epochs(method) for method in ("imp-mx", "imp-reprune", "imp-avg", "sms", "gmp-sms", "dpf-sms")}
    assert several == {method: pytest.approx(24.0) for method in several}
    assert epochs("bimp-sms") == pytest.approx(4 + 3 * 4), "its dense training is that of one model"
    assert (epochs("one-shot"), epochs("pruned")) == (4, 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_whether_candidates_matter(method):
    assert METHODS[method].averages == (plan(method, m=3) != plan(method, m=2))


@pytest.mark.parametrize("method", METHODS)
def test_every_plan_ends_at_the_goal_with_one_model(method):
    phases = plan(method)
    assert [phase.number for phase in phases] == list(range(1, len(phases) + 1))
    assert phases[-1].final_sparsity == 0.75
    assert phases[-1].merge != "none"
    assert not phases[-1].keeps_dense


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("snip", {}, "pruning_method must be one of ['bimp', 'bimp-sms', 'dpf'"),
        ("sms", {"target_sparsity": 1.0}, "target_sparsity must lie in [0, 1), got 1.0"),
        ("gmp", {"target_sparsity": -0.1}, "target_sparsity must lie in [0, 1), got -0.1"),
        ("sms", {"num_phases": 0}, "num_phases must be at least 1, got 0"),
        ("imp", {"num_train_epochs": 0}, "num_train_epochs must be above 0, got 0"),
        (
            "gmp",
            {"pruning_interval": 5.0},
            "pruning_interval must be above 0 and at most half of the training, 4 epochs, got 5",
        ),
        (
            "bimp",
            {"dense_train_epochs": 8.0},
            "dense_train_epochs must lie between 0 and num_phases * num_train_epochs = 8",
        ),
        (
            "sms",
            {"phase_shares": [0.5]},
            "phase_shares must be num_phases=2 fractions above 0 with a sum of 1, got [0.5]",
        ),
        ("sms", {"phase_shares": [0.5, 0.6]}, "fractions above 0 with a sum of 1"),
        ("sms", {"shared_fraction": 1.0}, "shared_fraction must lie in [0, 1), got 1.0"),
        ("imp", {"shared_fraction": 0.5}, "shared_fraction is for pruning_method='sms', got 'imp'"),
        ("sms", {"trunk_processes": 2}, "trunk_processes must be at least 1, and 1 without a trunk, got 2 and shared_"),
        ("gmp-soup", {"trunk_processes": 0}, "trunk_processes must be at least 1"),
        ("gmp-mx", {"trunk_processes": 2}, "trunk_processes is for pruning_method='sms', 'gmp-soup', got 'gmp-mx'"),
        ("one-shot", {"phase_shares": [1.0]}, "phase_shares is for pruning_method='imp', 'imp-mx', "),
        ("sms", {"pruning_end": 0.5}, "pruning_end is for pruning_method='gmp', 'gmp-mx', 'gmp-soup', 'dpf', "),
        ("sms", {"pruning_interval": 0.0}, "pruning_interval is for pruning_method='gmp', "),
        ("imp", {"pruning_interval": 1.0}, "'dpf-sms', got 'imp'. Leave it out."),
        ("gmp", {"dense_train_epochs": 1.0}, "dense_train_epochs is for pruning_method='bimp', 'bimp-sms', got 'gmp'"),
        ("gmp", {"pruning_end": 1.0}, "pruning_end must lie in (0, 1), got 1.0"),
        ("gmp", {"pruning_end": 0.1, "pruning_interval": 2.0}, "leaves no pruning event before pruning_end=0.1 of 8"),
        ("bimp", {"max_steps": 10}, "BIMP with max_steps needs original_num_epochs"),
    ],
)
def test_plans_that_make_no_sense_are_refused(method, changes, words):
    with pytest.raises(ValueError, match=r".") as error:
        plan(method, **changes)
    assert words in str(error.value)
