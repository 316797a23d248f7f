"""Several learner ranks over gloo, for real: the same gradients, weights and files as one rank."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from grpo.errors import LearnerError, RecipeError
from grpo.method.weighted_rows import rank_share
from grpo.model.ranks import join

HERE = Path(__file__).parent
BENCH = HERE.parents[2] / "benchmarks" / "bench_ranks.py"
spec = importlib.util.spec_from_file_location("bench_ranks", BENCH)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

pytestmark = pytest.mark.timeout(600)  # ten process groups, and machines are shared


def test_gradients_do_not_depend_on_the_number_of_ranks():
    figures = json.loads(bench.run_script(str(BENCH), "one", "ddp_2", "fsdp2_2"))
    assert len(figures["float64"]) == 2 * len(bench.OBJECTIVES) * len(bench.DEALS)
    assert figures["worst_float64"] <= bench.BAR_FLOAT64
    assert figures["worst_float32_over_one_rank"] <= bench.BAR_FLOAT32


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    bench.run_script(str(HERE / "ranks_worker.py"), str(folder))
    return folder


@pytest.mark.parametrize("launch", ["ddp_2", "fsdp2_2"])
@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
def test_training_ends_where_one_rank_does(runs, launch, kind):
    one, several = (np.load(runs / f"{name}.npz") for name in ("one", launch))
    tolerance = 1e-9 if kind == "full" else 1e-4  # float64, float32
    for name in ("weights", "after"):
        error = np.linalg.norm(several[f"{kind}/{name}"] - one[f"{kind}/{name}"])
        assert error <= tolerance * np.linalg.norm(one[f"{kind}/{name}"]), name
    # each rank asked for its own rows; one rank's own rows are all of them, in another order
    for name in ("logprobs", "surprise"):
        found, expected = (np.sort(run[f"{kind}/{name}"], axis=-1) for run in (several, one))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    said, expected = (json.loads((runs / f"{n}.json").read_text()) for n in (launch, "one"))
    assert said[f"{kind}/version"] == expected[f"{kind}/version"]
    assert said[f"{kind}/canary"] == pytest.approx(expected[f"{kind}/canary"], rel=1e-4)
    assert set(said[kind]) == set(expected[kind])
    for name, value in expected[kind].items():
        assert said[kind][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
@pytest.mark.parametrize(
    ("launch", "origin"), [("one", "fsdp2_2"), ("ddp_2", "one"), ("fsdp2_2", "one")]
)
def test_a_checkpoint_resumes_under_another_number_of_ranks(runs, launch, origin, kind):
    expected = np.load(runs / f"{origin}.npz")[f"{kind}/after"]
    found = np.load(runs / f"{launch}_from_{origin}.npz")[kind]
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)
    files = [sorted(p.name for p in (runs / n / kind).rglob("*")) for n in ("one", origin)]
    assert files[0] == files[1]


@pytest.mark.parametrize("num_minibatches", [1, 2])
def test_shares_are_whole_groups_and_balanced(num_minibatches):
    rows = bench.some_rows("dapo")
    shares = [rank_share(rows, rank, 2, num_minibatches) for rank in range(2)]
    assert sorted(map(id, shares[0] + shares[1])) == sorted(map(id, rows))
    assert not {r.group for r in shares[0]} & {r.group for r in shares[1]}
    for part in range(num_minibatches):  # every optimizer step is dealt out by itself
        loads = [
            sum(len(r.ids) for r in share if r.group % num_minibatches == part) for share in shares
        ]
        assert max(loads) < 1.6 * min(loads)
    assert rank_share(rows[:1], 1, 2) == []


def test_what_was_launched_is_checked(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="--fsdp_version 2"):
        join()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    join()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LearnerError, match="2 processes were launched"):
        join()
