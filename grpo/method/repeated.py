"""Reading the same row several times, with gradients that add up in one order.

The gradient of `values[places]` is a sum over the places that name the same row. PyTorch adds these
up with atomic additions, in whatever order its threads arrive, so that two runs of one seed part at
the last bit of a gradient and, some steps later, everywhere. The gradient of an embedding is the
same sum: there each row belongs to one thread, on a GPU the places are sorted first, and the order
is always that of the places. It is also faster.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rows_at(values_M_D: Tensor, places_N: Tensor) -> Tensor:
    """`values_M_D[places_N]` [N, D], with gradient; `places_N` may name a row more than once."""
    return functional.embedding(places_N, values_M_D)


def sums_at(values_N: Tensor, places_N: Tensor, size: int) -> Tensor:
    """The sum of the values at each place [size], with gradient; 0 where there is none."""
    add_up = torch.ops.aten.embedding_dense_backward
    return add_up(values_N[:, None], places_N, size, -1, False)[:, 0]
