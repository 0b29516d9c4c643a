"""A graph that another process compiles is the recorded one."""

import pickle

import pytest
import torch
from torch import Tensor, fx

from ppgen.infer.compile.portable_graph import NotPortable, PortableGraph, lift_constants
from ppgen.infer.compile.recording import Recording


def scaled(x: Tensor, factor: float) -> Tensor:
    """Views, several results, a small and a large constant."""
    low, high = (x[1:, ::2] * factor).aminmax(dim=0)
    return torch.cat([low, high]).softmax(0) @ torch.ones(4, 20) + torch.tensor([1.0, 2.0]).sum()


def recorded(function, *tensors: Tensor) -> fx.GraphModule:
    with torch.no_grad(), Recording(tensors) as recording:
        result = function(*tensors)
    recording.graph.output([recording.node(result)])
    return fx.GraphModule(recording.root, recording.graph)


X = torch.arange(12.0).reshape(3, 4)


def test_a_graph_that_was_sent_computes_the_same():
    module = recorded(lambda x: scaled(x, 0.3), X)
    portable = pickle.loads(pickle.dumps(PortableGraph.of(module, 0)))
    (result,) = portable.module()(X)
    assert torch.equal(result, scaled(X, 0.3))
    (node,) = (node for node in portable.module().graph.nodes if node.op == "placeholder")
    assert node.meta["like"] == (X.shape, X.stride(), X.dtype, X.device)


def test_equal_graphs_alone_have_equal_texts():
    graphs = [recorded(lambda x, factor=factor: scaled(x, factor), X) for factor in (0.3, 0.3, 0.4)]
    others = [recorded(torch.sin, X), recorded(torch.sin, X.double()), recorded(torch.sin, X.T)]
    others += [recorded(lambda x, c=c: x + torch.tensor(c), X) for c in (1.0, 2.0)]
    first, second, *rest = [PortableGraph.of(module, 0).text() for module in graphs + others]
    assert first == second
    assert len({first, *rest}) == len(rest) + 1


def test_large_constants_become_inputs_before_the_random_numbers():
    values = torch.arange(20.0)

    def function(x: Tensor, noise: Tensor) -> Tensor:
        return x + noise + torch.tensor(values.tolist()) + torch.tensor(2.0)

    module = recorded(function, torch.ones(20), torch.zeros(20))
    (lifted,) = lift_constants(module, draws=1)
    assert torch.equal(lifted, values)
    (result,) = module(torch.ones(20), lifted, torch.zeros(20))
    assert torch.equal(result, values + 3)
    assert [value.numel() for value in PortableGraph.of(module, 1).constants.values()] == [1]


@torch.library.custom_op("ppgen_tests::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    """An operation of a user's."""
    return 2 * x


def test_an_operation_that_only_this_process_knows_is_named():
    with pytest.raises(NotPortable, match=r"the operation ppgen_tests\.double"):
        PortableGraph.of(recorded(double, X), 0)
