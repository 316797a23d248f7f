"""Warnings of runs that stopped learning, and none for runs that only vary or are done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grpo.outside.terminal.console import Console
from grpo.rundir.health import Health
from grpo.rundir.log import RunLog


def metrics(reward, std=0.4, dead=0.1, right=0.0, wrong=0.0, count=128, **more):
    return {
        "reward": reward,
        "reward_std": std,
        "num_completions": float(count),
        "frac_unscored": 0.0,
        "frac_reward_zero_std": dead,
        "frac_reward_zero_std/all_right": right,
        "frac_reward_zero_std/all_wrong": wrong,
        "learning_rate": 1000.0,
        **more,
    }


DEAD = metrics(0.0, std=0.0, dead=1.0, wrong=1.0)


def observed(*steps):
    health = Health()
    return [health.observe(step) for step in steps]


def test_a_collapse_is_said_after_two_steps_with_the_setting_to_lower():
    *before, third = observed(metrics(1.6), DEAD, DEAD)
    assert before == [{}, {}]
    assert set(third) == {"collapse"}
    assert "learner.learning_rate (now 1000)" in third["collapse"]
    assert "was 1.6 and has been about 0 for 2 steps" in third["collapse"]


def test_a_weak_policy_that_collapses_is_seen_by_its_dead_groups():
    """A reward of 0.2 falls by half a standard deviation only."""
    *_, last = observed(metrics(0.2), metrics(0.22), DEAD, DEAD)
    assert set(last) == {"collapse"}


def test_a_graded_reward_collapses_without_dead_groups():
    *_, last = observed(*[metrics(0.8, std=0.2)] * 3, *[metrics(0.4, std=0.2)] * 2)
    assert set(last) == {"collapse"}


def test_it_clears_when_the_reward_comes_back():
    health = Health()
    for step in (metrics(1.6), DEAD, DEAD):
        health.observe(step)
    assert health.observe(metrics(1.5)) == {}


def test_groups_that_are_all_right_are_no_fault():
    done = metrics(1.0, std=0.0, dead=1.0, right=1.0)
    assert observed(metrics(0.6), metrics(0.9), *[done] * 10) == [{}] * 12
    assert observed(*[done] * 10) == [{}] * 10
    # reward 2.0 for a bonus on the way; then 1.0, all right without it
    assert observed(metrics(2.0), *[done] * 5) == [{}] * 6


def test_tasks_of_which_none_is_ever_solved_are_said_after_three_steps():
    *before, third, fourth = observed(DEAD, DEAD, DEAD, DEAD)
    assert before == [{}, {}]
    assert set(third) == set(fourth) == {"standstill"}
    assert "every completion is wrong (reward 0) in all 3 steps" in third["standstill"]
    constant = metrics(0.5, std=0.0, dead=1.0)
    assert "paid alike" in observed(*[constant] * 3)[-1]["standstill"]


def test_a_few_groups_that_are_equal_by_chance_are_no_standstill():
    small = DEAD | {"num_completions": 8.0}
    assert observed(*[small] * 7) == [{}] * 7
    assert set(observed(*[small] * 8)[-1]) == {"standstill"}  # 64 completions


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_chance_alone_sets_off_nothing(rate):
    """Eight groups of eight, a success rate that stays: 2,000 steps."""
    rng = np.random.default_rng(3)
    health, alarms = Health(), 0
    for _ in range(2000):
        scores = (rng.random((8, 8)) < rate).astype(float)
        flat = scores.mean(1)
        alarms += bool(
            health.observe(
                metrics(
                    scores.mean(),
                    std=scores.std(ddof=1),
                    dead=float(np.mean((flat == 0) | (flat == 1))),
                    right=float(np.mean(flat == 1)),
                    wrong=float(np.mean(flat == 0)),
                    count=64,
                )
            )
        )
    assert alarms == 0


def test_a_step_that_nothing_scored_says_nothing_here():
    unscored = metrics(0.0, std=0.0, dead=0.0) | {"frac_unscored": 1.0}
    assert observed(metrics(1.0), *[unscored] * 5) == [{}] * 6


def test_the_log_prints_it_once_and_remembers_across_a_resume(tmp_path: Path):
    def run(steps, first):
        console = Console(record=True, width=300, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
        with console.file, RunLog(tmp_path, title="rl", max_steps=9, console=console) as log:
            for number, step in enumerate(steps, first):
                log.step(number, step)
        return console.export_text()

    assert "collapsed" not in run([metrics(1.6), DEAD], 1)
    said = run([DEAD, DEAD, DEAD], 3)  # another process
    assert said.count("collapsed") == 1
    assert "rl step 3: the reward was 1.6" in said
