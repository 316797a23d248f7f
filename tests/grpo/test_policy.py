"""How a policy is made ready."""

import copy

import pytest
import torch

from grpo.policy import add_up_embedding, load_policy

from .rows import tiny_model


def test_a_tied_embedding_adds_up_its_gradient_as_before():
    model = tiny_model(tie_word_embeddings=True)
    ready = load_policy(copy.deepcopy(model))
    add_up_embedding(ready)
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
    add_up_embedding(model)
    assert not model.get_input_embeddings().sparse
