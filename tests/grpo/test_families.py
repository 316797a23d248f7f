"""Every causal family of transformers: what it gets is what `docs/models.md` says."""

from __future__ import annotations

import pytest
import torch

from tests.grpo.families import TEXT, VOCAB, quiet, tiny


@pytest.mark.parametrize("family", TEXT)
def test_every_family_has_a_tiny_model(family):
    model = tiny(family)
    with quiet(), torch.no_grad():
        logits = model(input_ids=torch.arange(2, 14).view(2, 6), use_cache=False).logits
    assert logits.shape == (2, 6, VOCAB)
    assert torch.isfinite(logits).all()
    assert sum(p.numel() for p in model.parameters()) < 500_000
