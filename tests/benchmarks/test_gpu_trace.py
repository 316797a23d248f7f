"""Counts and gaps of traces made by hand; times in microseconds as in a real one."""

from __future__ import annotations

import pytest
from gpu import trace
from gpu.timeline import analyze, between, innermost, merged

MAIN, BACKWARD = 1, 2
COUNTER = iter(range(1, 10_000))


def event(cat, name, ts, dur, tid=MAIN, correlation=None):
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def span(ts, dur):
    return event("user_annotation", trace.SPAN, ts, dur)


def launch(ts, kernel_ts, kernel_dur, tid=MAIN, name="gemm"):
    number = next(COUNTER)
    return [
        event("cuda_runtime", "cudaLaunchKernelExC", ts, 1, tid, number),
        event("kernel", name, kernel_ts, kernel_dur, 7, number),
    ]


def copy(ts, kind, *, waits, tid=MAIN):
    number = next(COUNTER)
    made = [
        event("cuda_runtime", "cudaMemcpyAsync", ts, 2, tid, number),
        event("gpu_memcpy", f"Memcpy {kind}", ts + 2, 3, 7, number),
    ]
    if waits:
        made.append(event("cuda_runtime", "cudaStreamSynchronize", ts + 3, 4, tid, next(COUNTER)))
    return made


def test_copies_and_waits_are_told_apart():
    events = [
        span(100, 900),
        event("cuda_runtime", "cudaDeviceSynchronize", 50, 10),  # before
        event("cuda_runtime", "cudaDeviceSynchronize", 1000, 10),  # after
        *launch(110, 120, 30),
        *launch(112, 150, 30, tid=BACKWARD),
        *copy(200, "HtoD (Pinned -> Device)", waits=False),
        *copy(220, "HtoD (Pageable -> Device)", waits=True),
        # pinned, and waited for: .to(device) without non_blocking
        *copy(240, "HtoD (Pinned -> Device)", waits=True),
        # another thread's wait is not that of the copy
        *copy(260, "HtoD (Pinned -> Device)", waits=False),
        event("cuda_runtime", "cudaStreamSynchronize", 263, 4, BACKWARD),
        *copy(280, "DtoH (Device -> Pageable)", waits=True),  # .item()
        event("cuda_runtime", "cudaEventSynchronize", 300, 4),
        event("cuda_runtime", "cudaStreamWaitEvent", 310, 4),  # the card waits, not the host
        event("cuda_driver", "cuLaunchKernel", 320, 1),
        event("cuda_runtime", "cudaLaunchKernel", 325, 2, correlation=20_000),
        event("cuda_driver", "cuLaunchKernel", 326, 1, correlation=20_000),  # for the one before
        event("cuda_runtime", "cudaGraphLaunch", 330, 1),
    ]
    assert trace.counts(sorted(events, key=lambda e: e["ts"])) == {
        "launches": 5,
        "synchronizations": 3,
        "host_to_device": 4,
        "blocking_host_to_device": 2,
        "device_to_host": 1,
    }


def test_a_trace_without_the_annotation_is_refused():
    with pytest.raises(ValueError, match="no annotation 'measured'"):
        trace.counts(launch(1, 2, 3))


def gapped():
    """Kernels at 10-30, 20-50, 80-90, and from the backward thread at 190-200, in 0-220."""
    return sorted(
        [
            span(0, 220),
            *launch(5, 10, 20),
            *launch(8, 20, 30),
            # 50 to 80: item() waits for 20 of them, within a function of ours
            event("python_function", "/x/grpo/learner/learner.py(120): step", 0, 220),
            event("python_function", "/x/torch/_tensor.py(9): item", 40, 30),
            event("cpu_op", "aten::item", 45, 25),
            event("cpu_op", "aten::_local_scalar_dense", 46, 22),
            event("cuda_runtime", "cudaStreamSynchronize", 48, 18),
            event("python_function", "/x/grpo/learner/head.py(7): pieces", 72, 6),
            *launch(78, 80, 10),
            # 90 to 190: backward, another thread
            event("cpu_op", "aten::waiting", 90, 100),
            event("cpu_op", "MmBackward0", 95, 90, BACKWARD),
            event("cpu_op", "aten::mm", 100, 70, BACKWARD),
            *launch(185, 190, 10, tid=BACKWARD, name="mm"),
        ],
        key=lambda e: e["ts"],
    )


def test_gaps_are_named_by_what_took_most_of_them():
    found = analyze(gapped())
    assert found["seconds"] == pytest.approx(220e-6)
    assert found["busy_seconds"] == pytest.approx(60e-6)
    assert found["idle_seconds"] == pytest.approx(160e-6)
    first, second, third, fourth = found["gaps"]
    assert (first["ms"], first["at_ms"]) == (0.1, 0.09)
    assert first["operation"] == "aten::mm"
    assert (second["ms"], second["at_ms"]) == (pytest.approx(0.03), 0.05)
    assert second["operation"] == "aten::_local_scalar_dense"
    assert second["call"] == "cudaStreamSynchronize"
    assert second["where"] == "/x/grpo/learner/learner.py(120): step"
    assert (third["ms"], third["at_ms"]) == (0.02, 0.2)
    assert (fourth["ms"], fourth["at_ms"]) == (0.01, 0.0)
    assert [(k["name"], k["ms"], k["count"]) for k in found["kernels"]] == [
        ("gemm", pytest.approx(0.06), 3),
        ("mm", pytest.approx(0.01), 1),
    ]
    assert found["counts"]["launches"] == 4


def test_on_a_cpu_the_gaps_are_those_between_operations_of_the_main_thread():
    events = [
        span(0, 100),
        event("cpu_op", "aten::mm", 10, 20),
        event("cpu_op", "aten::mm", 70, 30),
        event("cpu_op", "aten::add", 40, 10, BACKWARD),
        event("python_function", "grpo/training/loop.py(3): groups", 30, 39),
    ]
    found = analyze(sorted(events, key=lambda e: e["ts"]))
    assert found["timeline"] == "operations of the main thread"
    assert found["busy_seconds"] == pytest.approx(50e-6)
    assert [(g["ms"], g["operation"], g["where"]) for g in found["gaps"]] == [
        (0.04, "no operation", "grpo/training/loop.py(3): groups"),
        (0.01, "no operation", ""),
    ]
    assert found["counts"] is None


def test_innermost_counts_each_moment_once():
    nested = [event("cpu_op", "outer", 0, 100), event("cpu_op", "inner", 30, 30)]
    assert innermost(nested, (0, 100)) == ("outer", 80)  # 70 of 100; its longest part is 60-100
    assert innermost(nested, (25, 60)) == ("inner", 45)
    assert innermost(nested, (90, 140))[0] == ""
    assert innermost([], (10, 20)) == ("", 15)


def test_intervals():
    assert merged([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert between([(0, 4), (5, 6)], 0, 10) == [(4, 5), (6, 10)]
    assert between([], 0, 10) == [(0, 10)]


def test_a_large_trace_is_cut_and_says_so(tmp_path):
    events = [span(0, 100_000)]
    events += [event("python_function", f"f{i * 7919 % 9973}", i, 1) for i in range(3000)]
    events += [event("cpu_op", f"op{i * 7919 % 9973}", i, 1) for i in range(3000)]
    file = tmp_path / "trace.json.gz"
    assert trace.write_small(events, file, 10**6) == ""
    assert len(trace.read(file)) == 6001
    whole = file.stat().st_size
    assert trace.write_small(events, file, whole - 1) == "Python's functions"
    assert len(trace.read(file)) == 3001
    assert "and what is after" in trace.write_small(events, file, whole // 5)
    assert 10 < len(trace.read(file)) < 3001
    assert file.stat().st_size <= whole // 5
