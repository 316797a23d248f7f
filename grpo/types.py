"""What flows through a training step, as frozen records of plain Python and numpy.

    Task -> Prompt -> Request -> Completion -> Rollout -> Group -> Row -> (learner)

Dimensions are written as suffixes everywhere in the project:
    P prompts in a step · G completions of one prompt · T tokens of a completion
    R rows of a micro-batch · L padded row length · V vocabulary · N any count named beside it

Token ids travel from the sampler to the loss; text is never tokenized a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# role and content, and what else a chat template may read: tool_calls, reasoning_content, name.
Message = dict[str, Any]
Metrics = dict[str, float]
Status = Literal[
    "correct",
    "wrong",
    "scored",
    "unparseable_answer",
    "unparseable_gold",
    "timeout",
    "limit",
    "grader_error",
    "not_applicable",
]
# Of a reward, and of a weighted sum of them: its square is still a float32, in which much is
# computed. Beyond it a group's variance would be no number, and nobody would notice.
LARGEST_REWARD = 1e18
FinishReason = Literal["stop", "length", "abort"]
# Completions under way when weights change: finished under the old ones, or continued by the new.
InFlight = Literal["finish", "continue"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One problem, before any template.

    Task(uid="multiplication/7x8", prompt="What is 7 * 8?", answer="56", cluster="7x8")
    """

    uid: str
    prompt: str | list[Message]
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])  # forwarded to rewards
    cluster: str = ""  # tasks that share a cluster are not independent (bootstrap); "" = uid
    place: str = ""  # where it was read, say "rows.jsonl:3", for messages; "" = uid

    @property
    def where(self) -> str:
        """What a message calls the task."""
        return self.place or f"task {self.uid}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A task through a template: what the model reads.

    `prefill` is the part of the answer already written at the end of `text` (say "<think>\\n");
    rewards see it put back in front of the completion.
    """

    task: Task
    text: str
    ids: tuple[int, ...]
    prefill: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. Filters apply after the temperature, in the order top-k, top-p, min-p.

    temperature 0 is greedy (log-probs are then those at temperature 1).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()  # stop strings; the text up to and including the match is kept
    eos_ids: tuple[int, ...] = ()  # any of these ends the completion and is part of it

    @property
    def truncates(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A set of policy weights: the optimizer step it was made at and the hash of its content."""

    step: int
    hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """What an engine says after loading weights: which, how many tensors, and a canary's log-prob.

    `canary` is the summed log-prob of a fixed token sequence under the weights now resident. An
    engine made of several answers for the first one; `members` has the answer of each.
    """

    version: Version
    tensors: int
    canary: float
    engine: str = "engine"  # its name in messages
    members: tuple[Ack, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSpec:
    """An adapter as learner and engines put it on a model; plain data, as `EngineSpec` is.

    The fields are those of `model.lora` in a recipe.
    """

    rank: int
    alpha: float | None = None  # None: twice the rank
    target_modules: str | tuple[str, ...] = "all-linear"  # or a regex, or names
    use_rslora: bool = False
    use_dora: bool = False
    adapter: str = ""  # folder of the adapter that this one starts as; empty: a new one

    @property
    def lora_alpha(self) -> int | float:
        """`alpha` as peft's files have it: whole numbers as such."""
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        return int(alpha) if alpha == int(alpha) else alpha

    @property
    def scaling(self) -> float:
        """The factor of B A: alpha / rank, with rsLoRA alpha / sqrt(rank)."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What an engine is made from, whichever it is; plain data, so that workers elsewhere get it.

    `max_length` is the longest request in tokens, prompt and completion together.
    """

    model: str  # folder or hub id: configuration, tokenizer and the weights to start with
    dtype: str = "float32"  # type the engine computes in
    max_length: int
    seed: int = 0
    threads: int = 0  # CPU threads of this engine; 0: as the process has them
    lora: LoraSpec | None = None  # with one, `load_weights` brings the adapter, never the base
    quantization: str = "none"  # nf4: the base rounded as the learner's packed one is
    version: Version = Version(step=0, hash="as loaded")


class NoiseSplit(IntEnum):
    """What a completion is sampled for. One seed gives each its own noise."""

    TRAIN = 0
    HELDOUT = 1
    PROBE = 2  # of the gate that compares engine and learner

    def key(self, seed: int, prompt: int, visit: int) -> tuple[int, ...]:
        """`Request.key`: plain numbers, as engines hash what they look like."""
        return seed, self.value, prompt, visit


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """`n` completions of one token prefix; sample i's noise at position t is keyed (*key, i, t)."""

    uid: str
    ids: tuple[int, ...]
    n: int
    sampling: Sampling
    key: tuple[int, ...]  # (seed, split, prompt, visit), see `NoiseSplit`
    deadline: float | None = None  # time.monotonic() after which the request may be aborted


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of tokens from one source under one weights version."""

    ids: np.ndarray  # int64 [T]
    source: Literal["model", "tool"] = "model"
    version: Version
    logprobs: np.ndarray  # float32 [T], under the distribution that was sampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One sampled continuation of a request.

    `text` is decoded once, by `rollout/texts.py`: special tokens are in it, but for bos, pad and
    the eos that ended it; after a stop string nothing follows.
    """

    request: str  # Request.uid
    index: int  # 0 .. n-1
    segments: tuple[Segment, ...]
    text: str
    finish: FinishReason

    @property
    def ids(self) -> np.ndarray:
        """int64 [T], all segments in order."""
        return np.concatenate([s.ids for s in self.segments])

    @property
    def logprobs(self) -> np.ndarray:
        """float32 [T], sampler log-probs of all segments in order."""
        return np.concatenate([s.logprobs for s in self.segments])

    @property
    def mask(self) -> np.ndarray:
        """bool [T]: True where the model, not a tool, wrote the token."""
        return np.concatenate([np.full(len(s.ids), s.source == "model") for s in self.segments])

    def __len__(self) -> int:
        return sum(len(s.ids) for s in self.segments)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A verdict. `value` None means unscored: it leaves the group's baseline and the loss.

    Score(value=1.0, status="correct", detail="42 == 42", parts={"accuracy": 1.0})

    Of a sum, `right` has what each reward that says right or wrong said (None: neither). Where it
    is None, the score is one reward's own and `status` says it.
    """

    value: float | None
    status: Status
    detail: str = ""
    parts: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    right: Mapping[str, bool | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A completion with its score."""

    prompt: Prompt
    completion: Completion
    score: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The G rollouts of one prompt, in sample order."""

    prompt: Prompt
    visit: int  # tells repeated draws of this prompt apart (fresh noise each time); see TaskOrder
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One completion as the learner sees it. Rows of one group share `group` and `prompt_ids`.

    `columns` holds what the loss reads of each token, by the name it has there: `logp_sampler` (the
    sampler's log-probs), `advantages`, `weights` (the loss is the sum of weight * token loss,
    denominators included), and what an objective adds (`Objective.columns`).
    """

    group: int
    prompt_ids: tuple[int, ...]
    ids: np.ndarray  # int64 [T]
    mask: np.ndarray  # bool [T], tokens that are trained on
    columns: Mapping[str, np.ndarray]  # float32 [T] each
    temperature: float | None = None  # it was sampled at; None: the learner's own


@runtime_checkable
class Engine(Protocol):
    """Samples completions. Only `rollout/collect.py` knows what a group is."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; returns at once."""
        ...

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """Completions finished since the last call; waits up to `timeout` s (None: for one)."""
        ...

    def cancel(self, uids: Sequence[str]) -> None:
        """Forget requests; their completions are not returned."""
        ...

    def load_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        version: Version,
        in_flight: InFlight = "finish",
    ) -> Ack:
        """Replace the weights; `Ack` proves which ones are now resident."""
        ...

    def take_metrics(self) -> Metrics:
        """What happened since the last call: accepted drafts, replaced workers and the like."""
        ...

    def sleep(self) -> None:
        """Release what learning needs (KV cache, device memory)."""
        ...

    def wake(self) -> None:
        """Undo `sleep`."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


@runtime_checkable
class EnginePool(Engine, Protocol):
    """Several engines behind one; the agreement gate asks each of them."""

    @property
    def members(self) -> Sequence[tuple[str, Engine]]:
        """Each engine with its name, to be used only while the pool has no request under way."""
        ...


@runtime_checkable
class Learner(Protocol):
    """Turns rows into policy updates.

    With several ranks every method is collective: all ranks call it, in the same order. `step`
    takes each rank's own share of the rows.
    """

    rank: int
    num_ranks: int

    def step(self, rows: Sequence[Row]) -> Metrics:
        """One rollout batch: every optimizer step the recipe asks for."""
        ...

    def surprise(self, rows: Sequence[Row]) -> np.ndarray:
        """float64 [3, N] over trained tokens: log-prob, entropy, and variance of -log p."""
        ...

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Named tensors of the policy, as the engines should hold them."""
        ...

    def version(self) -> Version:
        """The version of what `weights` gives now."""
        ...

    def canary(self) -> float:
        """What an engine with these weights answers in `Ack.canary`, up to rounding."""
        ...

    def gather(self, objects: Sequence[T]) -> list[T]:
        """The lists of all ranks in rank order, on every rank."""
        ...

    def save_model(self, path: str) -> None:
        """The model alone, in Hugging Face layout."""
        ...

    def save(self, path: str) -> None:
        """Model in Hugging Face layout, optimizer, scheduler and RNG, under `path`."""
        ...

    def load(self, path: str) -> None:
        """The state `save` wrote."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """What rewards may know of the run, by TRL's name."""

    global_step: int


class Reward(Protocol):
    """TRL's calling convention, so that rewards move both ways.

    `completions` are strings (or message lists where the prompt is one), prefill included.
    Returns one float, or None for "not applicable", per completion.
    """

    def __call__(
        self,
        *,
        prompts: Sequence[str | list[Message]],
        completions: Sequence[str | list[Message]],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Sequence[float | None]:
        """Score a batch."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """A reward of ours: the same call, and a typed outcome per completion behind it."""

    def verify(self, completion: str, task: Task) -> Score:
        """The outcome for one completion (prefill included). Never raises on model output."""
        ...


class TaskSource(Protocol):
    """Where problems come from. Train and held-out are disjoint by construction."""

    def size(self, split: Literal["train", "heldout"]) -> int | None:
        """Number of tasks, None if unbounded."""
        ...

    def task(self, split: Literal["train", "heldout"], index: int) -> Task:
        """The task at `index`: the same one every time, on every machine."""
        ...
