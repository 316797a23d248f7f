"""FlexAttention over flat rows against the other ways there, on a CPU and without its compiler.

PyTorch has the backward pass of FlexAttention on a CPU, in plain tensor operations, but refuses to
run it there. The tests that need gradients take that refusal away. What Triton makes of it is for
`tests/gpu/test_attention.py`.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as of_torch

from grpo.attention import flex, interface
from grpo.attention.flex import BLOCK, attend_in_blocks, make_blocks, uses_flex
from grpo.attention.layout import Pack, make_layout
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import LearnerError
from grpo.learner import forward, layers, packing
from grpo.learner.learner import TorchLearner
from grpo.model import devices
from grpo.model.devices import choices
from tests.grpo.learner.test_exact import error, made, our_gradient, plain_gradient
from tests.grpo.rows import V, group, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch's compiler asks
]

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(0, 150), min_size=1, max_size=4)


def shapes(shortest):
    """Lengths of prompts, of at least `shortest` tokens, and of their completions."""
    packs = st.tuples(st.integers(shortest, 200), LENGTHS).filter(lambda s: s[0] + sum(s[1]))
    return st.lists(packs, min_size=1, max_size=3)


def laid(shapes):
    packs, at = [], 0
    for prompt, lengths in shapes:
        start, at = at, at + prompt
        completions = []
        for length in lengths:
            completions.append((at, length))
            at += length
        packs.append(Pack(start=start, prompt=prompt, completions=tuple(completions)))
    return tuple(packs), at


def pairs(packs, N):
    """Which token (row) attends to which, one token at a time."""
    visible = torch.zeros((N, N), dtype=torch.bool)
    for pack in packs:
        prompt = range(pack.start, pack.start + pack.prompt)
        for query in prompt:
            visible[query, pack.start : query + 1] = True
        for start, length in pack.completions:
            for query in range(start, start + length):
                visible[query, list(prompt)] = True
                visible[query, start : query + 1] = True
    return visible


def kinds(numbers, order):
    """[query blocks, key blocks] from the numbers of blocks and the order they come in."""
    found = torch.zeros(order.shape[-2:], dtype=torch.bool)
    for row, number in enumerate(numbers[0, 0].tolist()):
        found[row, order[0, 0, row, :number].long()] = True
    return found


@settings(max_examples=40)
@given(shapes=shapes(0))
def test_blocks_are_those_that_torch_finds_among_all_pairs(shapes):
    packs, N = laid(shapes)
    blocks = make_blocks(packs, CPU)
    visible = pairs(packs, N)
    assert torch.equal(of_torch.create_mask(blocks.mask_mod, 1, 1, N, N, "cpu")[0, 0], visible)
    expected = of_torch.create_block_mask(lambda b, h, q, k: visible[q, k], 1, 1, N, N, "cpu")
    assert blocks.shape == expected.shape
    for name in ("kv", "full_kv"):
        both = [
            kinds(getattr(b, f"{name}_num_blocks"), getattr(b, f"{name}_indices"))
            for b in (blocks, expected)
        ]
        assert torch.equal(*both), name


def test_a_prompt_of_a_block_and_completions_of_a_block_by_hand():
    packs, _ = laid([(BLOCK, [BLOCK, BLOCK])])
    blocks = make_blocks(packs, CPU)
    whole = kinds(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    partial = kinds(blocks.kv_num_blocks, blocks.kv_indices)
    assert whole.tolist() == [[False] * 3, [True, False, False], [True, False, False]]
    assert torch.equal(partial, torch.eye(3, dtype=torch.bool))


@pytest.fixture(scope="module")
def gradients_on_a_cpu():
    unlimited = torch._dynamo.config.patch(recompile_limit=1000)
    with pytest.MonkeyPatch.context() as patch, unlimited:
        patch.setattr(of_torch, "_validate_device", lambda *_: None)
        yield


def outputs_and_gradients(attention, given, upstream):
    """Of `attention`, a function of queries, keys and values that gives [1, N, H, D]."""
    given = [tensor.clone().requires_grad_() for tensor in given]
    out = attention(*given)
    return out.detach(), *torch.autograd.grad(out, given, upstream)


@settings(max_examples=12)
@given(
    shapes=shapes(1),  # to predict its first token a completion needs a prompt
    heads=st.sampled_from([(4, 4), (9, 3), (2, 1)]),
    single=st.booleans(),
)
def test_outputs_and_gradients(gradients_on_a_cpu, shapes, heads, single):
    packs, N = laid(shapes)
    dtype = torch.float32 if single else torch.float64
    torch.manual_seed(N)
    H, K = heads
    given = [torch.randn((1, n, N, 16), dtype=torch.float64) for n in (H, K, K)]
    upstream = torch.randn((1, N, H, 16), dtype=torch.float64)

    def plain(*tensors):
        layout = make_layout(packs, CPU)
        return interface.attention(
            torch.nn.Identity(), *tensors, None, scaling=0.3, shared_layout=layout
        )[0]

    def ours(*tensors):
        return attend_in_blocks(*tensors, make_blocks(packs, CPU), 0.3)

    exact = outputs_and_gradients(plain, given, upstream)
    narrow = [tensor.to(dtype) for tensor in given]
    found = outputs_and_gradients(ours, narrow, upstream.to(dtype))
    bar = 1e-5 if single else 1e-12
    for a, b in zip(found, exact, strict=True):
        # a single token's softmax has no gradient: then there is no norm to be relative to
        assert (a.double() - b).norm() < bar * (b.norm() + upstream.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_learners_gradient(gradients_on_a_cpu, monkeypatch, checkpointing):
    groups = [group(0, 150, [12, 70, 9], [1.0, 0.0, 0.0]), group(1, 3, [30, 5], [0.0, 1.0])]
    algorithm = Algorithm(loss_type="dapo", sampling_correction="none")
    sizes = {"hidden_size": 64, "max_position_embeddings": 256}
    exact = plain_gradient(groups, algorithm, tiny_model(**sizes))
    calls = []

    def counted(*given):
        calls.append(given[0].shape)
        return attend_in_blocks(*given)

    monkeypatch.setattr(interface, "uses_flex", lambda *_: True)
    monkeypatch.setattr(interface, "attend_in_blocks", counted)
    monkeypatch.setattr(layers, "_is_plain", lambda _: False)  # as on a GPU: transformers' layers
    monkeypatch.setattr(packing, "SHARE_ABOVE", -1.0)
    config = Config(max_grad_norm=0.0, gradient_checkpointing=checkpointing)
    learner = TorchLearner(tiny_model(**sizes), algorithm=algorithm, config=config)
    calls.clear()
    found = our_gradient(made(groups, "dapo"), learner, 10_000, True)
    assert error(found, exact) < 1e-10
    N = 150 + 11 + 69 + 8 + 3 + 29 + 4  # nothing is read of a completion's last token
    assert calls == [(1, 4, N, 16)] * (4 if checkpointing else 2)


def test_blocks_are_made_once_for_all_layers(gradients_on_a_cpu, monkeypatch):
    counted = []

    def counting(*given):
        counted.append(given)
        return make_blocks(*given)

    monkeypatch.setattr(interface, "uses_flex", lambda *_: True)
    monkeypatch.setattr("grpo.attention.layout.make_blocks", counting)
    packs, N = laid([(7, [5, 3])])
    ids, positions = torch.arange(N)[None] % V, torch.arange(N)[None]
    layout = make_layout(packs, CPU)
    forward._flat_hidden_states(tiny_model(num_hidden_layers=3), ids, positions, layout)
    assert len(counted) == 1


def test_two_graphs_for_rows_of_any_length(gradients_on_a_cpu, monkeypatch):
    """A GPU spends seconds on each: one for the first length, one for all the others."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(flex.flex_attention, backend=counter, fullgraph=True)
    monkeypatch.setattr(flex, "flex_attention", compiled)
    for shapes in (
        [(100, [60, 40])],
        [(100, [90, 200])],
        [(5, [90]), (256, [0, 128])],
        [(129, [0])],
        [(300, [400, 1, 300])],
        [(1, [100, 100, 56])],
    ):
        packs, N = laid(shapes)
        given = [torch.randn((1, heads, N, 16), requires_grad=True) for heads in (4, 2, 2)]
        attend_in_blocks(*given, make_blocks(packs, CPU), 0.25)
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    ("N", "D", "dtype", "expected"),
    [
        (129, 64, torch.bfloat16, True),
        (5000, 80, torch.float32, True),
        (128, 64, torch.bfloat16, False),  # one block
        (129, 8, torch.bfloat16, False),  # PyTorch's kernels begin at 16
        (129, 192, torch.bfloat16, False),
        (129, 64, torch.float64, False),
    ],
)
def test_where_it_is_used(monkeypatch, N, D, dtype, expected):
    tensors = [torch.zeros((1, heads, N, D), dtype=dtype) for heads in (4, 2, 2)]
    assert not uses_flex(*tensors, choices(CPU))
    monkeypatch.setattr(devices, "can_compile", lambda _: True)
    card = choices.__wrapped__(torch.device("cuda"))
    assert uses_flex(*tensors, card) == expected
    assert not uses_flex(*tensors[:2], torch.zeros((1, 2, N, D + 1), dtype=dtype), card)
    monkeypatch.setattr(devices, "can_compile", lambda _: False)
    assert not uses_flex(*tensors, choices.__wrapped__(torch.device("cuda")))


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TORCH_COMPILE_DISABLE", "1", False),
        ("TORCHDYNAMO_DISABLE", "1", False),
        ("TORCH_COMPILE_DISABLE", "0", True),
        ("GRPO_NATIVE", "0", True),  # means our own C++ and nothing else
    ],
)
def test_torch_s_own_switch_turns_it_off(monkeypatch, variable, value, expected):
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.7"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda _: "triton")
    monkeypatch.setattr(devices.shutil, "which", lambda name: name)
    monkeypatch.setenv(variable, value)
    assert choices.__wrapped__(torch.device("cuda")).flex_attention == expected


def test_what_its_compiler_refuses_says_what_to_do(monkeypatch):
    def refuses(*_args, **_kwargs):
        raise TorchDynamoException("out of resource: shared memory")

    monkeypatch.setattr(flex, "flex_attention", refuses)
    tensors = [torch.zeros(1, 2, 4, 16)] * 3
    with pytest.raises(LearnerError, match=r"out of resource.*TORCH_COMPILE_DISABLE=1"):
        attend_in_blocks(*tensors, None, 1.0)
