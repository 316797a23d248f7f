"""How a policy is made ready."""

import copy
from pathlib import Path

import pytest
import torch

from grpo.config.schema import Model
from grpo.learner.policy import add_up_embedding, load_policy
from grpo.model.devices import choices
from grpo.recipes import __file__ as recipes_file
from grpo.stages import sft
from tests.grpo.rows import tiny_model

BASE = str(Path(recipes_file).parent / "assets" / "parity-base")


def test_a_tied_embedding_adds_up_its_gradient_as_before():
    model = tiny_model(tie_word_embeddings=True)
    ready = load_policy(copy.deepcopy(model))
    add_up_embedding(ready, choices(ready.device))
    assert ready.get_input_embeddings().sparse
    ids = torch.tensor([[3, 5, 3, 3, 9, 2]])  # tokens that come again
    found = []
    for one in (model, ready):
        for _ in range(2):  # micro-batches
            one(input_ids=ids).logits.square().sum().backward()
        found.append(one.get_input_embeddings().weight.grad)
    assert found[1].layout is torch.strided
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(("tied", "device"), [(False, "cpu"), (True, "meta")])
def test_an_embedding_of_its_own_or_on_a_card_keeps_a_dense_gradient(tied, device):
    model = load_policy(tiny_model(tie_word_embeddings=tied).to(device))
    add_up_embedding(model, choices(model.device))
    assert not model.get_input_embeddings().sparse


def test_fine_tuning_leaves_cudnns_attention_alone_as_the_learner_does():
    for load in (
        lambda: load_policy(tiny_model()),
        lambda: sft._policy(Model(path=BASE), packing=False),
    ):
        torch.backends.cuda.enable_cudnn_sdp(True)
        load()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
