"""A stand-in for `grpo serve`, in the routes the client uses, with faults to order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from torch import Tensor

from grpo.model.content_hash import content_hash
from grpo.rollout.remote.segments import read_segment

VOCAB = 50
CANARY = -1.5  # log-prob of each canary token


class FakeServer:
    """State of the server. `faults` are used up by calls for completions, one each.

    500: that status · "drop": no answer · "hang": none for half a second · "half": a sample missing
    · "forget": weights gone, silently · "restart": another instance, and no answer · a dict: merged
    into each choice of an answer
    """

    def __init__(self) -> None:
        self.faults: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.deliveries: list[dict[str, Tensor]] = []
        self.paused: list[str] = []
        self.aborted: list[str] = []
        self.spoil: Callable[[dict[str, Any]], None] = lambda report: None  # lies about weights
        self.refuse = ""  # a path that answers 500
        self.ours = self.tokens = True
        self.strange: dict[str, Any] = {}  # path, or method of a worker: what it answers instead
        self.keys: list[str | None] = []  # that came with the calls
        self.hold = threading.Event()  # cleared: completions are held back
        self.hold.set()
        self.forget()
        self.url = ""

    def forget(self) -> None:
        """A process that has just been started."""
        self.instance = str(time.monotonic())
        self.label = "default"
        self.labels: list[str] = []
        self.arriving: dict[str, Tensor] = {}
        self.report: dict[str, Any] = {}

    def answer(self, path: str, body: Any) -> Any:
        """The JSON for `body` at `path`; an int is a bare status, None hangs up."""
        if self.refuse and path.startswith(self.refuse):
            return 500
        if path in self.strange:
            return self.strange[path]
        if path == "/openapi.json":
            paths = ["/inference/v1/generate"] if self.tokens else []
            return {"paths": dict.fromkeys(paths + ["/collective_rpc"] * self.ours)}
        if path == "/v1/models":
            return {"data": [{"id": "some-model"}]}
        if path == "/weight_info":
            return {"weight_version": self.label}
        if path == "/update_weight_version":
            self.label = body["new_version"]
            self.labels.append(self.label)
        elif path.startswith("/pause"):
            self.paused.append(path.partition("=")[2])
        elif path == "/update_weights":
            self.arriving.update(read_segment(body["update_info"]["segment"]))
        elif path == "/finish_weight_update":
            self.deliveries.append(self.arriving)
            count, digest = len(self.arriving), content_hash(self.arriving.items())
            self.report = {"hash": digest, "tensors": count, "missing": [], "different": None}
            self.spoil(self.report)
            self.arriving = {}
        elif path == "/inference/v1/abort_requests":
            self.aborted += body["request_ids"]
            self.hold.set()
        elif path == "/collective_rpc":
            return {"results": [self.rpc(body["method"])]}
        elif path == "/inference/v1/generate":
            return self.generate(body)
        elif path == "/v1/completions":
            self.asked.append(body)
            choice = {"text": "7", "finish_reason": "stop"}
            return {"choices": [{"index": i, **choice} for i in range(body["n"])]}
        return {}

    def rpc(self, method: str) -> Any:
        if method in self.strange:
            return self.strange[method]
        if method == "grpo_hello":
            return {
                "instance": self.instance,
                "model": "tiny",
                "dtype": "float32",
                "vocab_size": VOCAB,
                "max_length": 64,
            }
        return self.report if method == "grpo_report" else None

    def generate(self, body: dict[str, Any]) -> Any:
        ids, sampling = body["token_ids"], body["sampling_params"]
        if "prompt_logprobs" in sampling:
            rows = [{str(i): {"logprob": CANARY}} for i in ids]
            return {"prompt_logprobs": [None, *rows[1:]], "choices": []}
        self.asked.append(body)
        fault = self.faults.pop(0) if self.faults else None
        label, aborts = self.label, self.paused.count("abort")
        self.hold.wait(5)
        if fault == 500:
            return 500
        if fault == "restart":
            self.forget()
        if fault in ("drop", "restart"):
            return None
        if fault == "hang":
            time.sleep(0.6)
        if fault == "forget":
            self.forget()
            label = self.label
        aborted = self.paused.count("abort") > aborts or any(
            name.endswith(body["request_id"]) for name in self.aborted
        )
        extra = fault if isinstance(fault, dict) else {}
        choices = [
            {
                "index": i,
                "token_ids": [i, sampling["seed"] % VOCAB, 1],
                "logprobs": {"content": [{"logprob": -0.25 * (i + 1)}] * 3},
                "weight_versions": [{"version": label, "start": 0, "end": 3}],
                "text": f"sample {i}",
                "finish_reason": "abort" if aborted else "stop",
                **extra,
            }
            for i in range(sampling["n"])
        ]
        return {"choices": choices[1:] if fault == "half" else choices}


@contextmanager
def running(server: FakeServer | None = None) -> Iterator[FakeServer]:
    """A FakeServer that answers at its `url`."""
    fake = server or FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "0"))

        def reply(self, body: Any) -> None:
            fake.keys.append(self.headers["Authorization"])
            found = fake.answer(self.path, body)
            if found is None:
                self.close_connection = True
                return
            status = found if isinstance(found, int) else 200
            content = json.dumps({"error": {"message": "so it is"}} if status > 299 else found)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content.encode())
            except OSError:
                pass  # the client hung up

        def log_message(self, format: str, *args: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    fake.url = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        fake.hold.set()
        web.shutdown()
        thread.join()
        web.server_close()
