"""`grpo.score`: rewards over rows that have completions already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from grpo.commands.api import given as objects_of
from grpo.commands.api.calls import called
from grpo.commands.api.given import Given
from grpo.commands.process import restored
from grpo.config.schema import RewardSpec
from grpo.data.files import Placed, read_rows
from grpo.data.in_memory import rows_given
from grpo.errors import RecipeError
from grpo.outside.code import objects, plugins
from grpo.rewards.score_file import score_rows

if TYPE_CHECKING:
    from grpo.commands.api.frames import Rows


@called
def score(*, rewards: Any, dataset: Any, workers: int = 1) -> Rows:
    """Score rows that have a `completion`; a data frame with the rows and a column per reward.

        grpo.score(rewards=["accuracy", short], dataset=run.completions(step=3))

    rewards: as in `grpo.train`. dataset: rows with a `completion`, a `prompt` where a reward reads
    it, and any other columns, which rewards get by their names; a list of dicts, a data frame, a
    data set, or a path. workers: threads that score. A column has NaN where a reward gave no
    number, and `status` then says why. The figures are those of `grpo score`. Raises GrpoError.
    """
    from grpo.commands.api.frames import frame_of

    given = Given()
    specs = [RewardSpec(**entry) for entry in objects_of.reward_entries(given, rewards)]
    titles = [spec.title for spec in specs]
    for title in titles:
        if titles.count(title) > 1:
            raise RecipeError(
                f"rewards has {title!r} twice, and columns go by name; give one a label: "
                f"{{'name': {title!r}, 'label': 'other'}}"
            )
    rows = _read(dataset)
    earlier = {*titles, "status"}  # of a frame that was scored before
    found = [{name: cell for name, cell in row.items() if name not in earlier} for _, row in rows]
    said: list[list[str]] = [[] for _ in rows]
    with objects.given(given.objects), restored():
        for spec in specs:
            results = _scores(spec, rows, workers)
            for row, words, result in zip(found, said, results, strict=True):
                row[spec.title] = float("nan") if result["value"] is None else result["value"]
                if result["value"] is None:
                    detail = f" ({result['detail']})" if result["detail"] else ""
                    words.append(f"{spec.title}: {result['status']}{detail}")
    return frame_of(
        [
            row | {"status": "; ".join(words) or "scored"}
            for row, words in zip(found, said, strict=True)
        ],
        titles,
    )


def _read(dataset: Any) -> list[Placed]:
    if isinstance(dataset, str | os.PathLike):
        return read_rows(os.fspath(cast("str | os.PathLike[str]", dataset)))
    return rows_given(dataset, "dataset")


def _scores(spec: RewardSpec, rows: list[Placed], workers: int) -> list[dict[str, Any]]:
    """What one reward says of every row."""
    is_given = objects.is_object(spec.name)
    reward = plugins.load("reward", spec.name, spec.args) if is_given else spec.name
    return list(score_rows(reward, rows, workers, spec.args, spec.timeout))
