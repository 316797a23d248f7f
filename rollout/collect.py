"""From single completions back to groups: the only place on the rollout side that knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grpo.errors import EngineError
from grpo.rollout.answers import check_answer
from grpo.types import Completion, Engine, Request


def collect(
    engine: Engine,
    requests: Sequence[Request],
    *,
    vocab_size: int | None = None,
    text: bool = False,
) -> Iterator[tuple[str, tuple[Completion, ...]]]:
    """Submit `requests`; yield (request uid, its n completions in index order) as groups finish.

    `vocab_size` and `text` are passed to `check_answer`. Raises EngineError for a completion that
    nobody asked for, that came twice or that cannot be an answer, and when the engine has nothing
    more to give while some are missing. If the caller stops early, what is left is canceled.
    """
    asked = {r.uid: r for r in requests}
    if len(asked) != len(requests):
        raise EngineError("two requests of one batch have the same uid")
    groups: dict[str, dict[int, Completion]] = {uid: {} for uid in asked}
    engine.submit(requests)
    try:
        while groups:
            polled = engine.poll()
            if not polled:
                missing = {uid: asked[uid].n - len(group) for uid, group in groups.items()}
                raise EngineError(f"the engine lost completions (request: missing): {missing}")
            for completion in polled:
                uid, index = completion.request, completion.index
                if uid not in asked:
                    raise EngineError(f"completion {index} of request {uid!r} was not asked for")
                check_answer(asked[uid], completion, vocab_size=vocab_size, text=text)
                group = groups.get(uid)
                if group is None or index in group:
                    raise EngineError(f"completion {index} of request {uid!r} came twice")
                group[index] = completion
                if len(group) == asked[uid].n:
                    del groups[uid]
                    yield uid, tuple(group[i] for i in range(asked[uid].n))
    finally:
        if groups:
            engine.cancel(list(groups))
