"""Rules over constructed series: each on either side of its threshold."""

import inspect
import json
import math

import numpy as np
import pytest

from dogbreed.config.compose import compose
from dogbreed.monitor import callback, rules, system_rules
from dogbreed.monitor.rules import Finding

STEPS = list(range(0, 100, 10))


def rising(finding: Finding, step: int | None = None) -> Finding:
    """A finding that was triggered says a sentence with its figure, and where."""
    assert finding.triggered
    assert finding.step is not None
    assert step is None or finding.step == step
    assert finding.message.endswith(".")
    assert any(character.isdigit() for character in finding.message)
    assert "nan" not in finding.message
    return finding


def quiet(finding: Finding) -> Finding:
    assert not finding.triggered
    assert finding.step is None
    assert finding.message.endswith(".")
    return finding


# Losses


def test_a_loss_that_falls_by_just_enough_is_fine():
    losses = [4.0 * 0.9989**place for place in range(10)]  # by 0.11 % each ten steps
    quiet(rules.loss_not_decreasing(STEPS, losses))


def test_a_loss_that_falls_by_just_too_little_is_not():
    losses = [*(4.0 * 0.9**place for place in range(5)), *(4.0 * 0.9**4 * 0.9991**place for place in range(1, 6))]
    found = rising(rules.loss_not_decreasing(STEPS, losses), step=50)
    assert found.figures["fall_percent"] == pytest.approx(0.09)
    assert "fell by only 0.09 %" in found.message


@pytest.mark.parametrize(("percent", "said"), [(4.9, "did not fall"), (5.1, "rose by 5.1 %")])
def test_a_rise_is_called_one_from_five_percent_on(percent, said):
    found = rising(rules.loss_not_decreasing([0, 10], [2.0, 2.0 * (1 + percent / 100)]), step=10)
    assert said in found.message


def test_losses_are_compared_at_the_published_distance():
    """The example of AWS's page: saved every three steps, 21 is compared with 9, and the next check is at 33."""
    steps = list(range(9, 36, 3))
    losses = {step: 1.0 for step in steps}  # standing still, but for those steps
    losses[21], losses[33] = 0.9, 0.9 * 0.95
    quiet(rules.loss_not_decreasing(steps, list(losses.values())))
    losses[33] = 0.9
    rising(rules.loss_not_decreasing(steps, list(losses.values())), step=33)


def test_a_loss_that_is_too_short_or_no_number_says_nothing():
    assert "Fewer than 10 steps" in quiet(rules.loss_not_decreasing([0, 9], [1.0, 2.0])).message
    quiet(rules.loss_not_decreasing([0, 10, 20], [1.0, math.nan, 0.9]))
    quiet(rules.loss_not_decreasing([], []))


@pytest.mark.parametrize(("val", "triggered"), [(1.09, False), (1.1000001, True)])
def test_overfit_from_a_tenth_above(val, triggered):
    found = rules.overfit([1, 2, 3], [1.0, 1.0, 1.0], [1.0, 1.0, val])
    assert found.triggered is triggered
    assert found.step == (3 if triggered else None)


def test_overfit_waits_for_its_patience_in_a_row_and_its_first_step():
    train, val = [1.0] * 5, [2.0, 1.0, 2.0, 2.0, 2.0]
    rising(rules.overfit(range(5), train, val, patience=2), step=3)
    rising(rules.overfit(range(5), train, val, patience=3), step=4)
    quiet(rules.overfit(range(5), train, val, patience=4))
    quiet(rules.overfit(range(5), train, val, start_step=5))
    rising(rules.overfit(range(5), train, val, start_step=4), step=4)


def test_what_is_no_longer_true_is_no_longer_found():
    quiet(rules.overfit([1, 2, 3], [1.0, 1.0, 1.0], [1.0, 2.0, 1.0]))
    quiet(rules.loss_not_decreasing([0, 10, 20], [1.0, 1.0, 0.9]))
    rising(rules.loss_not_decreasing([0, 10, 20, 30], [1.0, 1.0, 0.9, 0.9]), step=30)
    flat = [1.0, *[0.5] * 6]
    rising(rules.overtraining(range(7), flat, flat), step=6)
    quiet(rules.overtraining(range(8), [*flat, 0.3], [*flat, 0.3]))


def test_the_figures_are_those_at_the_end():
    found = rising(rules.overfit([1, 2, 3], [1.0, 0.5, 0.1], [1.0, 0.66, 0.567]), step=2)
    assert "467 % above" in found.message
    assert found.figures["ratio"] == pytest.approx(4.67)


def test_overfit_says_where_the_validation_loss_goes():
    assert "and is at its lowest so far." in rules.overfit([1, 2], [1.0, 0.5], [1.0, 0.9]).message
    assert "has risen from 0.9000." in rules.overfit([1, 2], [1.0, 0.5], [0.9, 1.0]).message
    assert "4 times the training loss" not in rules.overfit([1], [1.0], [4.0]).message
    assert "101 times the training loss" in rules.overfit([1], [0.01], [1.01]).message


def test_overfit_without_anything_to_compare():
    quiet(rules.overfit([1], [1.0], [math.nan]))
    quiet(rules.overfit([], [], []))


@pytest.mark.parametrize(("standing", "triggered"), [(4, False), (5, True)])
def test_overtraining_after_five_without_a_better_training_loss(standing, triggered):
    train = [1.0, 0.5] + [0.495] * standing  # 0.005 lower is no new optimum
    val = [1.0 - 0.02 * place for place in range(len(train))]
    found = rules.overtraining(range(len(train)), train, val)
    assert found.triggered is triggered
    assert found.step == (6 if triggered else None)


@pytest.mark.parametrize(("standing", "triggered"), [(9, False), (10, True)])
def test_overtraining_after_ten_without_a_better_validation_loss(standing, triggered):
    val = [1.0, 0.5] + [0.6] * standing
    train = [1.0 - 0.02 * place for place in range(len(val))]
    found = rules.overtraining(range(len(val)), train, val, unit="epoch")
    assert found.triggered is triggered
    if triggered:
        assert "validation loss has not improved by 0.01 on 0.5000 (epoch 1) for 10 epochs" in found.message


def test_small_steps_add_up_to_a_better_loss():
    losses = [1.0 - 0.004 * place for place in range(30)]
    quiet(rules.overtraining(range(30), losses, losses))


# Gradients, activations


@pytest.mark.parametrize(("gradient", "triggered"), [(1e-7, False), (9.9e-8, True)])
def test_vanishing_gradient(gradient, triggered):
    found = rules.vanishing_gradient([10, 20], {"a": [1e-3, 1e-3], "b": [1e-3, gradient]})
    assert found.triggered is triggered
    if triggered:
        assert rising(found, step=20).message.startswith("The mean gradient of b is 9.9e-08")


def test_exploding_tensor():
    quiet(rules.exploding_tensor([1, 2], {"a": [1e38, -1e38]}))
    assert "a is infinite at step 2" in rising(rules.exploding_tensor([1, 2], {"a": [1, math.inf]}), step=2).message
    assert "a is not a number at step 1" in rising(rules.exploding_tensor([1], {"a": [math.nan]}), step=1).message
    quiet(rules.exploding_tensor([1], {"a": [-math.inf]}, only_nan=True))
    rising(rules.exploding_tensor([1], {"a": [math.nan]}, only_nan=True))
    quiet(rules.exploding_tensor([], {}))


def poor(losses, variances=(1.0, 9.0), gradient=0.01, **parameters):
    count = len(losses)
    series = {f"layer{place}": [variance] * count for place, variance in enumerate(variances)}
    return rules.poor_weight_initialization(
        range(1, count + 1), losses, series, {"weight": [gradient] * count}, **parameters
    )


STANDING = [2.0, *[2.1] * 5]  # five steps without a lower loss


def test_poor_weight_initialization_by_the_variances():
    quiet(poor(STANDING, (1.0, 10.0)))
    assert "11-fold in variance" in rising(poor(STANDING, (1.0, 11.0)), step=6).message
    rising(poor(STANDING, (0.0, 1.0)))


def test_poor_weight_initialization_by_the_gradients():
    quiet(poor(STANDING, gradient=0.001))
    assert "lie within 9.9e-04" in rising(poor(STANDING, gradient=0.00099), step=6).message


def test_poor_weight_initialization_only_while_the_loss_stands_still():
    quiet(poor(STANDING[:-1], (1.0, 100.0), gradient=0.0))
    quiet(poor([2.0, 1.9, 1.8, 1.7, 1.6, 1.5], (1.0, 100.0), gradient=0.0))


def test_poor_weight_initialization_looks_at_the_first_steps_only():
    late = [*np.linspace(3.0, 2.0, 6), *[2.1] * 10]
    quiet(poor(late, (1.0, 100.0)))
    rising(poor(late, (1.0, 100.0), first_steps=11), step=11)


def test_dead_relu():
    half = [0.0] * 5 + [50.0] * 5
    quiet(rules.dead_relu([1], {"a": [half]}))
    more = [0.99] * 6 + [50.0] * 4
    assert "60 % of the 10 rectifiers of a" in rising(rules.dead_relu([1, 2], {"a": [half, more]}), step=2).message
    quiet(rules.dead_relu([1], {"a": [[1.0] * 6 + [50.0] * 4]}))  # fires for just enough inputs
    quiet(rules.dead_relu([], {}))


# The machine


def gpu(values, **parameters):
    return system_rules.low_gpu_utilization({"GPU 0": values}, **parameters)


def test_low_gpu_utilization():
    assert "is idle" in rising(gpu([69.0] * 1001), step=1001).message
    quiet(gpu([71.0] * 1001))
    assert "stops and goes" in rising(gpu([90.0] * 1375 + [9.0] * 26)).message
    quiet(gpu([90.0] * 1376 + [9.0] * 25))  # the 5th percentile of the last 500 lies above


def test_low_gpu_utilization_waits_and_forgets():
    assert "Too early" in quiet(gpu([0.0] * 1000)).message
    quiet(gpu([0.0] * 1000 + [90.0] * 500))
    rising(gpu([0.0] * 30, patience=20))
    assert not system_rules.low_gpu_utilization({}).applies


def test_every_gpu_is_looked_at():
    found = rising(system_rules.low_gpu_utilization({"GPU 0": [90.0] * 1001, "GPU 1": [20.0] * 1001}))
    assert found.message.startswith("GPU 1 is idle")


@pytest.mark.parametrize(("rule", "limit"), [(system_rules.cpu_bottleneck, 90.0), (system_rules.io_bottleneck, 50.0)])
def test_bottlenecks(rule, limit):
    count = 1002
    over = [limit + 1] * 502 + [0.0] * 500  # in 50.1 % of the samples
    idle = {"GPU 0": [9.0] * count, "GPU 1": [90.0] * count}
    assert "50 % of 1,002 samples" in rising(rule(idle, [[0.0] * count, over])).message
    quiet(rule(idle, [[*over[1:], 0.0]]))  # 50.0 %
    quiet(rule({"GPU 0": [10.0] * count}, [over]))  # used just enough
    quiet(rule(idle, [[limit] * count]))
    assert "Too early" in quiet(rule({"GPU 0": [0.0] * 1000}, [[100.0] * 1000])).message
    assert not rule({}, [over]).applies


def test_gpu_memory_increase():
    flat = [20.0] * 1001
    quiet(system_rules.gpu_memory_increase({"GPU 0": flat}))
    quiet(system_rules.gpu_memory_increase({"GPU 0": flat + [25.0] * 10}))
    found = rising(system_rules.gpu_memory_increase({"GPU 0": flat + [25.1] * 10}), step=1011)
    assert found.figures["rise"] == pytest.approx(5.1)
    quiet(system_rules.gpu_memory_increase({"GPU 0": [0.0] * 500 + [90.0] * 500}))  # before the patience ends
    quiet(system_rules.gpu_memory_increase({"GPU 0": [0.0] * 500 + [90.0] * 600}))
    assert not system_rules.gpu_memory_increase({}).applies


def loading(wait, compute, steps=200, workers=0, cores=8, **more):
    return system_rules.data_loading([wait] * steps, [compute] * steps, workers=workers, cores=cores, **more)


def test_data_loading_from_half_of_the_time():
    quiet(loading(0.1, 0.1))
    found = rising(loading(0.11, 0.1), step=200)
    assert found.message.startswith("The CPU waited 52 % of the last 200 steps for data: data.num_workers=2")


def test_data_loading_looks_at_the_last_steps():
    waits, computes = [0.9] * 300 + [0.01] * 200, [0.1] * 500
    quiet(system_rules.data_loading(waits, computes, workers=0, cores=8))
    rising(system_rules.data_loading(waits, computes, workers=0, cores=8, window=500))
    assert "Too early" in quiet(loading(0.9, 0.1, steps=19)).message
    rising(loading(0.9, 0.1, steps=20))


def test_data_loading_advises_as_many_workers_as_are_enough():
    # The published example: a GPU that waits 76 % of the time, two workers; 2 / 0.24 are enough.
    found = rising(loading(0.76, 0.24, workers=2, cores=16, device="cuda"))
    assert found.message.startswith("The GPU waited 76 % of the last 200 steps for data: data.num_workers=9")
    few = rising(loading(0.76, 0.24, workers=2, cores=4))
    assert "data.num_workers=4 (all cores; 9 would be enough)" in few.message
    none = rising(loading(0.76, 0.24, workers=4, cores=4))
    assert "4 workers already share 4 cores: a machine with more cores" in none.message
    assert "cache.mode=auto" in none.message


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_advised_workers_are_enough(workers):
    """Simulated: a batch takes a second to load and a quarter to compute."""
    load, compute = 1.0, 0.25
    wait = load if workers == 0 else max(0.0, load / workers - compute)
    needed = system_rules.workers_needed(wait, compute, workers)
    assert load / needed <= compute + 1e-9 < load / (needed - 1)


def test_step_outlier():
    steps = range(1, 202)
    calm = [0.1] * 201
    quiet(system_rules.step_outlier(steps, calm))
    some = calm.copy()
    some[50:60] = [1.0] * 10
    assert quiet(system_rules.step_outlier(steps, some)).figures["outliers"] == 10
    some[60] = 1.0
    assert "11 of 201 steps took longer" in rising(system_rules.step_outlier(steps, some), step=61).message
    assert "Too early" in quiet(system_rules.step_outlier(range(100), [0.1] * 99 + [9.0])).message


# Images


def test_imbalance():
    quiet(rules.imbalance({"mutt": 120, "Boxer": 12, "none": 0}))
    message = rising(rules.imbalance({"mutt": 121, "Boxer": 12})).message
    assert message.startswith("mutt has 121 training images and Boxer 12, 10 times fewer: accuracy favours")
    quiet(rules.imbalance({"mutt": 120, "Boxer": 1}, threshold_imbalance=120))
    quiet(rules.imbalance({}))


# What all have in common


def rule_functions():
    named = {name: getattr(rules, name, None) or getattr(system_rules, name) for name in callback.RULES}
    return {**named, "step_outlier": system_rules.step_outlier}


@pytest.mark.parametrize("name", [*callback.RULES, "step_outlier"])
@pytest.mark.slow
def test_the_configuration_has_the_parameters_and_defaults_of_the_functions(name):
    signature = inspect.signature(rule_functions()[name]).parameters
    own = {"unit", "workers", "cores", "device"}  # given by the run, not by a person
    defaults = {key: p.default for key, p in signature.items() if p.kind is p.KEYWORD_ONLY and key not in own}
    assert compose()["rules"][name] == defaults


def test_published_defaults():
    """As AWS's pages and code have them."""
    settings = compose()["rules"]
    assert settings["loss_not_decreasing"] == {
        "num_steps": 10,
        "diff_percent": 0.1,
        "increase_threshold_percent": 5.0,
    }
    assert settings["overfit"] == {"start_step": 0, "patience": 1, "ratio_threshold": 0.1}
    assert settings["overtraining"] == {"patience_train": 5, "patience_validation": 10, "delta": 0.01}
    assert settings["vanishing_gradient"] == {"threshold": 1e-7}
    assert settings["exploding_tensor"] == {"only_nan": False}
    assert settings["poor_weight_initialization"] == {
        "threshold": 10.0,
        "distribution_range": 0.001,
        "patience": 5,
        "first_steps": 10,
    }
    assert settings["dead_relu"] == {"threshold_inactivity": 1.0, "threshold_layer": 50.0}
    assert settings["imbalance"] == {"threshold_imbalance": 10}
    assert settings["low_gpu_utilization"] == {
        "threshold_p95": 70,
        "threshold_p5": 10,
        "window": 500,
        "patience": 1000,
    }
    assert settings["cpu_bottleneck"] == {
        "threshold": 50,
        "gpu_threshold": 10,
        "cpu_threshold": 90,
        "patience": 1000,
    }
    assert settings["io_bottleneck"] == {
        "threshold": 50,
        "gpu_threshold": 10,
        "io_threshold": 50,
        "patience": 1000,
    }
    assert settings["gpu_memory_increase"] == {"increase": 5, "patience": 1000, "window": 10}
    assert {key: settings["step_outlier"][key] for key in ("stddev", "n_outliers")} == {"stddev": 3, "n_outliers": 10}


def test_a_finding_is_plain_json():
    found = rules.exploding_tensor([3], {"a": [math.inf]})
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content == {
        "rule": "exploding_tensor",
        "triggered": True,
        "message": found.message,
        "step": 3,
        "figures": {"value": None},
        "parameters": {"only_nan": False},
        "applies": True,
    }
