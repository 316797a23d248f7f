"""The other end of the server engine's wire: who answers there, and which weights it holds.

Which weights sampled a token is not inferred: vLLM labels every span of output tokens with the
label of the weights then resident. The label is set last of all, after the weights were checked,
and no label that may be sampled from is set while they change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from grpo.errors import EngineError, WeightsError
from grpo.model.canary import canary_ids
from grpo.outside.web.client import Client
from grpo.outside.web.replies import Refused, Unreachable, part
from grpo.rollout.remote.segments import send_segments
from grpo.rollout.settings import ServerSettings
from grpo.types import Ack, EngineSpec, Version

GENERATE = "/inference/v1/generate"
_AS_STARTED = "default"  # vLLM's label of weights that nobody delivered
_LOADING = "loading"  # label while weights change: no completion may carry it
_CONTROL_SECONDS = 30.0  # for a control call that does no work
_HELLO = {"instance": str, "model": str, "dtype": str, "vocab_size": int, "max_length": int}


@dataclass(frozen=True, kw_only=True)
class _Resident:
    """What was delivered last, for a server that loses it."""

    weights: list[tuple[str, Tensor]]
    ack: Ack


class Control:
    """The server that `client` calls, as far as one engine knows it.

    gives_tokens   it has the token route
    takes_weights  it is one of `grpo serve`
    labels         the weights that were delivered, oldest first; `label` is the last one's
    restarts       how many were met

    Raises EngineError where no server answers, or it cannot hold what `spec` asks for.
    """

    def __init__(self, spec: EngineSpec, client: Client, settings: ServerSettings) -> None:
        self.spec, self.client, self.address = spec, client, client.address
        self.restarts = 0
        self.labels: dict[str, Version] = {_AS_STARTED: spec.version}
        self.settings = settings
        self.label = _AS_STARTED
        self._resident: _Resident | None = None
        self._hello: dict[str, Any] = {}
        self.gives_tokens, self.takes_weights = self._routes()
        self.model = "" if self.gives_tokens else self._first_model()
        if self.takes_weights:
            self._greet()

    def since(self, label: str) -> dict[str, Version]:
        """The weights that were resident when `label` was, and those delivered after it."""
        places = list(self.labels)
        return {later: self.labels[later] for later in places[places.index(label) :]}

    @property
    def max_length(self) -> int | None:
        """The longest request in tokens, where the server says."""
        return self._hello.get("max_length")

    @property
    def vocab_size(self) -> int | None:
        """Rows of the model's embedding, where the server says."""
        return self._hello.get("vocab_size")

    def abort(self, name: str) -> None:
        """Have the server answer the call `name` with what it has."""
        names = {"request_ids": [f"generate-tokens-{name}"]}
        with suppress(Unreachable, Refused):
            self._control("/inference/v1/abort_requests", names)

    def is_same(self) -> bool:
        """Whether the server answers, and is the one it was."""
        with suppress(Unreachable, Refused):
            return self._ask_hello()["instance"] == self._hello["instance"]
        return False

    def forget(self) -> None:
        """Let go of the copy of the weights."""
        self._resident = None

    def _control(self, path: str, body: Any = None, *, timeout: float = _CONTROL_SECONDS) -> Any:
        return self.client.call("POST", path, body, timeout=timeout)

    def _rpc(self, method: str, kinds: Mapping[str, type]) -> dict[str, Any]:
        """What the server's first worker answers to `method` of our extension, with these parts."""
        answer = self._control("/collective_rpc", {"method": method})
        found = part(answer, "results", 0, kind=dict)
        for name, kind in kinds.items():
            part(found, name, kind=kind)
        return found

    def _ask_hello(self) -> dict[str, Any]:
        return self._rpc("grpo_hello", _HELLO)

    def _routes(self) -> tuple[bool, bool]:
        """Whether the server takes and gives tokens, and whether it can take weights."""
        try:
            found = self.client.call("GET", "/openapi.json", timeout=_CONTROL_SECONDS)
        except Refused as refusal:
            self._check_token(refusal)
            return False, False  # it answers, and is not vLLM
        except Unreachable as error:
            raise EngineError(
                f"no server answers at rollout.engine_args.url = {self.address.url} ({error}); "
                f"start one with `grpo serve {self.spec.model}`"
            ) from error
        try:
            paths = part(found, "paths", kind=dict)
        except Unreachable:
            paths = {}
        if "/collective_rpc" not in paths:
            return GENERATE in paths, False
        try:
            self._hello = self._ask_hello()
        except Refused:
            return GENERATE in paths, False  # development routes, and not our worker
        except Unreachable as error:
            raise EngineError(
                f"the server at {self.address.url} does not say what it holds ({error}); restart "
                f"it with `grpo serve {self.spec.model}`"
            ) from error
        return True, True

    def _check_token(self, refusal: Refused) -> None:
        """Say so where it is the key that is wrong. Raises EngineError."""
        if refusal.status == 401:
            raise EngineError(
                f"the server at {self.address.url} does not take our key ({refusal}); set "
                "rollout.engine_args.key_file to the file that `grpo serve` named at its start, or "
                "rollout.engine_args.api_key_env to the environment variable with its key"
            ) from refusal

    def _first_model(self) -> str:
        """The name a text-only server has for its model."""
        try:
            listed = self.client.call("GET", "/v1/models", timeout=_CONTROL_SECONDS)
            return part(listed, "data", 0, "id", kind=str)
        except (Refused, Unreachable) as error:
            raise EngineError(
                f"{self.address.url} is not an OpenAI-compatible server: /v1/models gives {error}"
            ) from error

    def _greet(self) -> None:
        """Refuse a server that cannot hold what the recipe asks for. Raises EngineError."""
        problem = None
        if self.spec.lora:
            problem = "takes full weights, and model.lora is set: use rollout.engine=vllm"
        elif self._hello["dtype"] != self.spec.dtype:
            problem = (
                f"computes in {self._hello['dtype']}, the recipe asks for {self.spec.dtype}: start "
                f"it with --dtype {self.spec.dtype}, or set rollout.dtype={self._hello['dtype']}"
            )
        elif self._hello["max_length"] < self.spec.max_length:
            problem = (
                f"holds {self._hello['max_length']} tokens, the recipe asks for "
                f"{self.spec.max_length}: start it with --max-model-len {self.spec.max_length}"
            )
        if problem:
            raise EngineError(f"the server at {self.address.url} {problem}")

    def ensure_ready(self) -> None:
        """Wait for the server if it is gone; give it the last weights if it has lost them."""
        for _ in range(self.settings.retries + 1):
            with suppress(Unreachable):
                self._await_hello()
                info = self.client.call("GET", "/weight_info", timeout=_CONTROL_SECONDS)
                label = part(info, "weight_version", kind=str)
                if label == self.label:
                    if self._resident is None:
                        self._check_same_model()
                    return
                self._restore(label)
                return
        raise EngineError(f"the server at {self.address.url} keeps going away; see its log")

    def _await_hello(self) -> None:
        """Wait up to `wait` seconds for an answer; note a restart."""
        end = time.monotonic() + self.settings.wait
        while True:
            try:
                hello = self._ask_hello()
                break
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused):
                    self._check_token(error)
                if time.monotonic() > end:
                    raise EngineError(
                        f"the server at {self.address.url} has been gone for "
                        f"{self.settings.wait:.0f} s ({error}); restart it with `grpo serve "
                        f"{self.spec.model}` and continue the run with --resume, or raise "
                        "rollout.engine_args.wait"
                    ) from error
                time.sleep(0.5)
        restarted = hello["instance"] != self._hello["instance"]
        self._hello = hello
        if restarted:
            self.restarts += 1
            self._greet()

    def _check_same_model(self) -> None:
        """Before anything was delivered, the server must have started from the same files."""
        served = str(self._hello["model"])
        if _place(served) != _place(self.spec.model):
            raise EngineError(
                f"the server at {self.address.url} serves {served!r}, not {self.spec.model!r}; "
                f"start it with `grpo serve {self.spec.model}`"
            )

    def _restore(self, found: str) -> None:
        """Deliver the last weights once more, and have them acknowledged as before."""
        if self._resident is None:
            raise WeightsError(
                f"the server at {self.address.url} holds weights {found!r} of another run; restart "
                f"it with `grpo serve {self.spec.model}`"
            )
        before = self._resident.ack
        # Whatever is under way there was sampled from weights that are not ours.
        ack = self._deliver(self._resident.weights, before.version, "abort")
        if ack.version != before.version or abs(ack.canary - before.canary) > 0.02 * max(
            1.0, abs(before.canary)
        ):
            raise WeightsError(
                f"after its restart the server acknowledged weights {ack.version} with canary "
                f"{ack.canary:.4f}; before, it was {before.version} with {before.canary:.4f}"
            )

    def deliver(self, weights: list[tuple[str, Tensor]], version: Version, mode: str) -> Ack:
        """Put `weights` in the server, sampling paused by vLLM's `mode`, and keep them."""
        ack = self._deliver(weights, version, mode)
        self._resident = _Resident(weights=weights, ack=ack)
        return ack

    def _deliver(self, weights: list[tuple[str, Tensor]], version: Version, mode: str) -> Ack:
        """Pause, load, label, resume; starts over when the server goes away in between."""
        for attempt in range(self.settings.retries + 1):
            try:
                self._await_hello()
                return self._deliver_once(weights, version, mode)
            except Unreachable as error:
                if attempt == self.settings.retries:
                    raise WeightsError(
                        f"weights {version} did not reach {self.address.url}: {error}"
                    ) from error
            except Refused as error:
                raise WeightsError(
                    f"the server at {self.address.url} did not load weights {version}: {error}"
                ) from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _deliver_once(self, weights: list[tuple[str, Tensor]], version: Version, mode: str) -> Ack:
        label = f"{version.step}-{version.hash}"
        self._control(f"/pause?mode={mode}", timeout=self.settings.timeout)
        try:
            self._control("/update_weight_version", {"new_version": _LOADING})
            self._control("/collective_rpc", {"method": "grpo_begin"})
            self._control("/start_weight_update", timeout=self.settings.timeout)
            for path in send_segments(weights):
                info = {"update_info": {"segment": path}}
                self._control("/update_weights", info, timeout=self.settings.timeout)
            self._control("/finish_weight_update", timeout=self.settings.timeout)
            # Keys and values of the old weights, also those of completions that were paused.
            self._control("/reset_prefix_cache?reset_running_requests=true")
            report = self._rpc("grpo_report", {"hash": str, "tensors": int, "missing": list})
            if report["missing"]:
                raise WeightsError(
                    f"{len(report['missing'])} parameters of the server got no weights, among "
                    f"them {report['missing'][:3]}"
                )
            if report.get("different"):
                raise WeightsError(
                    f"weights {version} arrived in the server, and {report['different']!r} is not "
                    "resident as it was sent; restart the server"
                )
            # Last in the order of labels, also where these weights were here before.
            self.labels.pop(label, None)
            self.labels[label] = version
            self.label = label
            self._control("/update_weight_version", {"new_version": label})
        finally:
            # A server that went away has nothing to resume.
            with suppress(Unreachable, Refused):
                self._control("/resume")
        return Ack(
            version=Version(step=version.step, hash=report["hash"]),
            tensors=report["tensors"],
            canary=self._canary(),
            engine=f"server at {self.address.url}",
        )

    def _canary(self) -> float:
        """Summed log-prob of the canary tokens under the weights now resident."""
        ids = canary_ids(self._hello["vocab_size"])
        body = {"token_ids": ids, "sampling_params": {"max_tokens": 1, "prompt_logprobs": 0}}
        answer = self._control(GENERATE, body, timeout=self.settings.timeout)
        rows = part(answer, "prompt_logprobs", kind=list)
        if len(rows) != len(ids):
            raise Unreachable(f"log-probs of {len(rows)} tokens came, and not of {len(ids)}")
        return sum(
            part(row, str(i), "logprob", kind=float)
            for i, row in zip(ids[1:], rows[1:], strict=True)
        )


def _place(model: str) -> str:
    """A folder's real path; a hub id as it is."""
    path = Path(model)
    return str(path.resolve()) if path.is_dir() else model
