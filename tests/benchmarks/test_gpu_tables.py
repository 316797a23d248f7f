"""Tables of the contests, made of results by hand: whole, missing, failed and not run."""

from __future__ import annotations

from typing import Any

from gpu.figures import counted, ratio
from gpu.section import Setup
from gpu.sections import generation, learner, long, recipes, step, vllm, weights


def rows(table: str) -> list[list[str]]:
    """Cells of a Markdown table without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def cells(table: str, *first: str) -> list[str]:
    """The one row that begins so."""
    (found,) = [row for row in rows(table) if tuple(row[: len(first)]) == first]
    return found


def record(median: float, **more: Any) -> dict[str, Any]:
    return {"median": median, "tokens_per_second": 1000 / median, "peak_gpu_gib": 12.34, **more}


def test_learner_compares_with_our_faster_size_and_says_what_ran_out_of_memory():
    small = {
        "ours": record(0.5, mfu=0.25, counts={"synchronizations": 3, "host_to_device": 8}),
        "TRL, autocast": record(3.0, alone=True),
        "TRL, bf16 weights": record(2.0),
    }
    large = {
        "ours": record(0.4),
        "TRL, autocast": {"failed": "OutOfMemoryError: CUDA out of memory"},
        "TRL, bf16 weights": record(1.8),
    }
    results = {
        "smollm2-135m.16384": {"tokens": 16_384, "rows": 16, "contenders": small},
        "smollm2-135m.65536": {"tokens": 65_536, "rows": 64, "contenders": large},
        "qwen2.5-0.5b.16384": {"failed": "RuntimeError: no room"},
        "qwen2.5-1.5b.8192": {"not run": "trl is not installed"},
    }
    table = learner.table(results)
    assert cells(table, "smollm2-135m", "ours", "16,384 tokens") == [
        *("smollm2-135m", "ours", "16,384 tokens", "0.500", "2,000", "25.0%", "12.3"),
        *("3 synchronizations, 8 host to device", ""),
    ]
    # 3.0 s over our faster 0.4 s, not over the 0.5 s beside it
    alone = cells(table, "smollm2-135m", "TRL, autocast (alone)")
    assert alone[2:] == ["16 rows", "3.000", "333", "not known", "12.3", "not known", "7.50"]
    failed = cells(table, "smollm2-135m", "TRL, autocast", "64 rows")
    assert failed[3] == "failed: OutOfMemoryError: CUDA out of memory"
    assert cells(table, "qwen2.5-0.5b", "", "failed: RuntimeError: no room")
    assert cells(table, "qwen2.5-1.5b", "", "not run: trl is not installed")
    # 1.8 / 0.4 over every setting, 3.0 / 0.4 in the same precision
    said = "smollm2-135m: 4.50 times TRL's fastest setting, 7.50 times in the same precision"
    assert said in table
    assert "qwen2.5-0.5b: no speed-up is known" in table


def test_what_a_micro_batch_of_every_contender_keeps_fits_beside_the_others():
    # GiB on one H200 of 139.8: KiB a token and layer that HF's forward keeps (measured), times
    # layers and tokens, and bytes a parameter of weights, gradients, moments and copies in bfloat16
    parameters, layers = 1.544e9, 28
    for tokens, rows in learner.MODELS["qwen2.5-1.5b"]:
        kept = {"ours": (tokens, 106.8, 18), "autocast": (rows * 612, 121.8, 18)}
        kept["bf16"] = (rows * 612, 106.8, 8)
        sizes = [n * kib * layers / 2**20 + b * parameters / 2**30 for n, kib, b in kept.values()]
        assert sum(sizes) < 125
    for part in long.PARTS:
        assert part.recompute or part.length * 74.9 * 28 / 2**20 < 125


def test_vllm_and_trl_sample_by_the_runner_that_vllm_takes_by_itself():
    *_, environment = generation.CONTENDERS["vLLM"]
    assert "VLLM_USE_V2_MODEL_RUNNER" not in environment | step.ENVIRONMENT


def test_learner_without_any_of_trl_in_our_precision():
    contenders = {
        "ours": record(1.0),
        "TRL, autocast": {"failed": "OutOfMemoryError"},
        "TRL, bf16 weights": record(2.0),
    }
    results = {"smollm2-135m.16384": {"tokens": 1, "rows": 1, "contenders": contenders}}
    assert learner.best(results, "smollm2-135m") == "2.00 times TRL's fastest setting"


def test_generation_takes_ours_from_another_step_of_the_same_workload():
    results = {
        "smollm2-135m.fixed": {
            "contenders": {"ours": record(4.0), "transformers": {"failed": "RuntimeError: x"}}
        },
        "smollm2-135m.fixed.vllm": {"contenders": {"vLLM": record(1.0)}},
        "smollm2-135m.lognormal.vllm": {"not run": "vllm is not installed"},
    }
    table = generation.table(results)
    assert cells(table, "smollm2-135m", "fixed", "vLLM")[-1] == "0.25"
    assert cells(table, "smollm2-135m", "fixed", "transformers")[3] == "failed: RuntimeError: x"
    assert cells(table, "smollm2-135m", "fixed", "ours, compiled")[3] == "not run"
    vllm_row = cells(table, "smollm2-135m", "lognormal", "vLLM")
    assert vllm_row[3] == "not run: vllm is not installed"
    del results["smollm2-135m.fixed"]
    assert cells(generation.table(results), "smollm2-135m", "fixed", "vLLM")[-1] == ""
    assert len({part.name for part in generation.PARTS}) == len(generation.PARTS)


def test_weights_shows_every_part_and_the_rate_of_all_of_it():
    parts = {"learner's hash": 1.0, "copy": 0.25, "engine's hash": 0.5, "the rest": 0.25}
    results = {
        "torch.smollm2-135m": {"contenders": {"torch": record(2.0, bytes=3e9, parts=parts)}},
        "vllm.smollm2-135m": {"contenders": {"vllm": {"failed": "RuntimeError: no vLLM"}}},
    }
    table = weights.table(results)
    row = cells(table, "torch", "smollm2-135m")
    assert row[2:] == [
        "3.00",
        "2.000",
        "1.000",
        "0.250",
        "",
        "0.500",
        "",
        "",
        "0.250",
        "1.50",
        "12.3",
    ]
    assert cells(table, "vllm", "smollm2-135m")[2] == "failed: RuntimeError: no vLLM"
    assert cells(table, "vllm", "qwen2.5-1.5b")[2] == "not run"


def test_step_compares_with_our_faster_engine():
    times = {"time/rollout": 6.0, "time/learn": 1.5, "time/weights": 0.5}
    results = {
        "ours.torch": {"contenders": {step.OURS: record(8.0, **times)}},
        "ours.vllm": {"contenders": {step.VLLM: record(2.0)}},
        "trl.autocast": {"contenders": {"TRL, vLLM, autocast": record(5.0)}},
        "trl.bf16": {"failed": "killed"},
    }
    table = step.table(results)
    assert cells(table, step.OURS)[2:] == ["6.00, 1.50, 0.50", "125", "12.3", "4.00"]
    assert cells(table, "TRL, vLLM, autocast")[2:] == ["", "200", "12.3", "2.50"]
    assert cells(table, "TRL, vLLM, bf16 weights")[1] == "failed: killed"


def test_recipes_shows_accuracy_time_and_gap():
    found = {
        "before": 0.21,
        "after": 0.5,
        "steps": 40,
        "train seconds": 61.7,
        "wall seconds": 90.2,
        "gap, mean": 0.0125,
        "gap, largest": None,
    }
    table = recipes.table({"torch": found, "vllm": {"failed": "RuntimeError: 1"}})
    expected = ["0.210", "0.500", "40", "62", "90", "1.25e-02, not known"]
    assert cells(table, "torch")[1:] == expected
    assert cells(table, "vllm")[1] == "failed: RuntimeError: 1"


def test_long_has_the_published_rows_whatever_was_run():
    ours = record(1.0, mfu=0.4, counts=None)
    table = long.table({"16384.kept": {"contenders": {"ours": ours}}})
    theirs = cells(table, "16,384 tokens", "yes", "prime-rl, one H100 (published)")
    assert theirs[3:6] == ["11,900", "11.1%", "12.5"]
    assert cells(table, "16,384 tokens", "no", "ours")[3:6] == ["1,000", "40.0%", "12.3"]
    assert cells(table, "65,536 tokens", "yes", "ours")[3] == "not run"


def test_every_table_can_be_made_of_nothing_and_tiny_steps_are_some_of_all(tmp_path):
    for module in (learner, generation, weights, step, vllm, recipes, long):
        section = module.SECTION
        assert "not run" in section.table({})
        assert section.minutes <= 8
        names = {
            tiny: [
                s.name
                for s in section.steps(
                    Setup(device="cpu", tiny=tiny, assets=tmp_path, folder=tmp_path, threads=1)
                )
            ]
            for tiny in (True, False)
        }
        assert names[True]
        assert set(names[True]) <= set(names[False])
        assert len(set(names[False])) == len(names[False])


def test_cells():
    assert ratio(3.0, 2.0) == "1.50"
    assert ratio(3.0, None) == ratio(None, 3.0) == ""
    assert counted({"counts": {"device_to_host": 1200}}) == "1,200 device to host"
    assert counted({}) == "not known"
