"""PyTorch modules become networks with the same answers, and networks modules."""

import copy
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import teraedge
from teraedge import (
    GELU,
    ClippedReLU,
    Hardtanh,
    Identity,
    Layer,
    Network,
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
)
from teraedge.errors import ModelError, TeraedgeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.3, 0.6),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
}


def batch_norm(features, seed=0):
    random = torch.Generator().manual_seed(seed)
    module = nn.BatchNorm1d(features)
    for tensor in (module.running_mean, module.weight.data, module.bias.data):
        tensor.normal_(generator=random)
    module.running_var.uniform_(0.2, 3, generator=random)
    return module


def samples(*shape, seed=0):
    return torch.randn(40, *shape, generator=torch.Generator().manual_seed(seed))


def expected_of(module, x):
    """The answer in float64, in eval mode."""
    about = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    training, module = module.training, module.eval().double()
    with torch.no_grad():
        answer = module(x.double()).flatten(1).numpy()
    module.to(next(iter(about.values()), torch.float32)).train(training)
    return answer


def assert_same(module, shape, tolerance=1e-6, **given):
    network = teraedge.from_torch(module, **given)
    x = samples(*shape)
    features = x.flatten(1).numpy()
    expected = expected_of(module, x)
    reference = teraedge.reference.run(network, features)
    scale = max(1, np.abs(expected).max())
    np.testing.assert_allclose(reference.outputs, expected, atol=tolerance * scale)
    result = teraedge.compile(network).run(features)
    assert (
        np.abs(result.outputs - reference.outputs) <= result.error_bound(network, features)
    ).all()
    return network


class Functional(nn.Module):
    """Everything in the forms that people write in forward."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(12, 20), nn.Linear(20, 16), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        x = F.relu(self.one(x))
        x = torch.clamp(x, max=2.0).contiguous()
        x = F.dropout(x, 0.3, training=self.training)
        x = F.gelu(self.two(x), approximate="tanh") * self.scale - 0.25
        x = x.reshape(x.shape[0], -1).clamp(min=-1.0, max=3.0)
        return torch.sigmoid(F.linear(x, self.three.weight, self.three.bias) / 2)


class Residual(nn.Module):
    def __init__(self, activation, inner=30, last=True):
        super().__init__()
        self.down, self.up = nn.Linear(16, inner), nn.Linear(inner, 16)
        self.again, self.last = nn.Linear(16, 16), last
        self.norm, self.f = batch_norm(16), activation

    def forward(self, x):
        x = x + self.up(self.f(self.down(x)))
        y = self.norm(x)
        y = torch.add(x, self.again(self.f(self.again(self.f(y)))), alpha=0.5)
        return self.f(self.again(y)) - x if self.last else y


class Positive(nn.Module):
    """Sums of what lies where the activation keeps it: x is carried as it is."""

    def __init__(self, activation):
        super().__init__()
        self.one, self.two, self.f = nn.Linear(10, 10), nn.Linear(10, 10), activation

    def forward(self, x):
        x = self.f(self.one(x))
        return self.f(x + self.two(self.f(self.one(x))))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_sequential(name):
    module = nn.Sequential(
        nn.Linear(12, 30), ACTIVATIONS[name](), nn.Linear(30, 7, bias=False), ACTIVATIONS[name]()
    )
    network = assert_same(module, (12,))
    assert (network.n_in, network.n_out, network.edges) == (12, 7, 12 * 30 + 30 * 7)
    assert network.notes == ()


def test_functional_forms():
    module = Functional()
    module.train()
    network = assert_same(module, (3, 4), input_shape=(3, 4))
    assert network.name == "Functional"
    assert module.training, "the module is as it was"


@pytest.mark.parametrize("method", ["relu", "sigmoid", "tanh"])
def test_methods(method):
    class Methods(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 6)

        def forward(self, x):
            return getattr(self.linear(x), method)()

    assert_same(Methods(), (5,))


def test_batch_norm_goes_into_its_neighbours():
    before = nn.Sequential(batch_norm(8), nn.Linear(8, 9), nn.ReLU())
    behind = nn.Sequential(nn.Linear(8, 9), batch_norm(9), nn.ReLU())
    between = nn.Sequential(nn.Linear(8, 9), nn.GELU(), batch_norm(9), nn.Linear(9, 4))
    for module in (before, behind, between):
        network = assert_same(module, (8,))
        assert len(network) == sum(isinstance(part, nn.Linear) for part in module)
        assert network.notes == ()
    last = assert_same(nn.Sequential(nn.Linear(8, 9), nn.Tanh(), batch_norm(9)), (8,))
    assert [layer.edges for layer in last] == [72, 9]
    assert "9 of 81 edges were added" in last.notes[0]


def test_batch_norm_is_folded_in_float64_and_rounded_once():
    module = nn.Sequential(nn.Linear(4, 3), batch_norm(3))
    weight, norm = module[0].weight.detach().double(), module[1]
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    expected = (weight * scale[:, None]).T.float().detach().numpy()
    np.testing.assert_array_equal(teraedge.from_torch(module)[0].weights.toarray(), expected)


def test_heads():
    for softmax in (nn.Softmax(dim=1), nn.Softmax(dim=-1), nn.LogSoftmax(1)):
        network = assert_same(nn.Sequential(nn.Linear(6, 5), softmax), (6,))
        assert network.head == ("softmax" if isinstance(softmax, nn.Softmax) else "log_softmax")
    assert teraedge.from_torch(nn.Linear(6, 5)).head is None


@pytest.mark.parametrize("form", ["function", "method"])
def test_argmax_is_left_out(form):
    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x):
            y = F.softmax(self.linear(x), dim=1)
            return y.argmax(dim=1) if form == "method" else torch.argmax(y, -1)

    module = Labels()
    network = teraedge.from_torch(module)
    assert network.head == "softmax"
    assert network.notes == ("argmax at the end is left out: Result.labels is it",)
    x = samples(6)
    np.testing.assert_array_equal(network.predict(x.numpy()), module(x).numpy())


def test_pruned_weights_are_not_edges():
    module = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    prune.l1_unstructured(module[0], "weight", 0.9)
    prune.random_structured(module[2], "weight", 0.5, dim=0)
    prune.l1_unstructured(module[2], "bias", 0.5)
    network = assert_same(module, (20,))
    assert [layer.edges for layer in network] == [60, 150]
    # The hook writes `weight` when the module is called; what counts is how it would be then.
    with torch.no_grad():
        module[0].weight_orig.mul_(2)
    np.testing.assert_array_equal(
        teraedge.from_torch(module)[0].weights.toarray(), 2 * network[0].weights.toarray()
    )
    prune.remove(module[0], "weight")
    assert teraedge.from_torch(module)[0].edges == 60


def test_parametrised_weights():
    class Masked(nn.Module):
        def forward(self, weight):
            return weight * (weight > 0)

    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    parametrize.register_parametrization(module[0], "weight", Masked())
    network = assert_same(module, (6,))
    assert network.edges == int((module[0].weight > 0).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).to(dtype)
    network = assert_same(module, (6,))
    stored = np.float64 if dtype is torch.float64 else np.float32
    for layer, linear in zip(network, (module[0], module[2]), strict=True):
        assert layer.weights.dtype == stored
        wide = linear.weight.detach().double().numpy().T
        np.testing.assert_array_equal(layer.weights.toarray(), wide)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_tensors(layout):
    module = nn.Linear(20, 30)
    mask = torch.rand(30, 20) < 0.1
    dense = module.weight.detach() * mask
    sparse = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    plain = copy.deepcopy(module)
    plain.weight = nn.Parameter(dense)
    module.weight = nn.Parameter(sparse)
    network = teraedge.from_torch(module)
    np.testing.assert_array_equal(
        network[0].weights.toarray(), teraedge.from_torch(plain)[0].weights.toarray()
    )
    assert network.edges == int((dense != 0).sum())


def test_two_of_four_tensors():
    """As SparseSemiStructuredTensor, which only a GPU makes: a subclass with `to_dense`."""

    class TwoOfFour(torch.Tensor):
        def to_dense(self):
            dense = torch.zeros(3, 8)
            dense[:, ::2] = self.as_subclass(torch.Tensor)
            return dense

    module = nn.Linear(8, 3)
    packed = torch.randn(3, 4)
    module.weight = nn.Parameter(packed.as_subclass(TwoOfFour), requires_grad=False)
    weights = teraedge.from_torch(module)[0].weights.toarray()
    np.testing.assert_array_equal(weights[::2].T, packed.numpy())
    assert not weights[1::2].any()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()], ids=repr)
@pytest.mark.parametrize("last", [True, False])
def test_residual_sums(activation, last):
    module = Residual(activation, last=last)
    network = assert_same(module, (16,))
    given = sum(
        part.weight.numel() * times
        for part, times in ((module.down, 1), (module.up, 1), (module.again, 2 + last))
    )
    added = network.edges - given
    assert 0 < added <= 20 * 16
    assert f"{added:,} of {network.edges:,} edges were added" in network.notes[0]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh()], ids=repr)
def test_sums_of_what_the_activation_keeps(activation):
    """A value within the bounds needs one edge to be carried: no halves."""
    network = assert_same(Positive(activation), (10,))
    assert network.edges == 3 * 100 + 2 * 10
    assert len(network) == 3


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.Hardtanh()], ids=repr)
def test_sums_that_no_chain_can_carry(activation):
    with pytest.raises(ModelError, match=r"the input is needed again after .* use ReLU, GELU or"):
        teraedge.from_torch(Residual(activation))


def test_a_residual_over_relu_is_exact():
    """Halves of x are x itself: with whole numbers not a bit differs."""
    module = Residual(nn.ReLU())
    with torch.no_grad():
        for part in (module.down, module.up, module.again):
            part.weight.copy_(torch.randint(-1, 2, part.weight.shape))
            part.bias.copy_(torch.randint(-1, 2, part.bias.shape))
        module.norm = nn.Identity()
    network = teraedge.from_torch(module)
    x = torch.randint(-2, 3, (50, 16)).float()
    np.testing.assert_array_equal(
        teraedge.compile(network).run(x.numpy()).outputs, module(x).detach().numpy()
    )


CONVOLUTIONS = {
    "plain": (nn.Conv2d(2, 3, 3), (2, 6, 7)),
    "strided": (nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 2)), (2, 9, 8)),
    "dilated groups": (nn.Conv2d(4, 6, 3, dilation=2, padding=2, groups=2), (4, 7, 6)),
    "same": (nn.Conv2d(1, 2, 3, padding="same", bias=False), (1, 5, 5)),
    "valid": (nn.Conv1d(3, 2, 4, padding="valid"), (3, 11)),
    "depthwise": (nn.Conv1d(4, 8, 3, stride=2, padding=3, groups=4), (4, 10)),
    "1x1": (nn.Conv2d(5, 4, 1), (5, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    conv, shape = CONVOLUTIONS[name]
    network = assert_same(conv, shape, input_shape=shape, lower_conv=True)
    out = conv(samples(*shape)).shape[1:]
    work = out.numel() * conv.weight[0].numel()
    assert network.edges <= work
    assert f"{network.edges:,} edges, for {work:,} multiply-adds" in network.notes[0]


def test_a_network_with_convolutions():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(6 * 7 * 7, 10),
        nn.Softmax(dim=1),
    )
    module[1].running_var.uniform_(0.5, 2)
    module[1].running_mean.normal_()
    network = assert_same(module, (1, 28, 28), input_shape=(1, 28, 28), lower_conv=True)
    assert len(network) == 3


def test_convolutions_only_when_asked_for():
    for keywords in ({}, {"input_shape": (1, 5, 5)}):
        with pytest.raises(ModelError, match=r"is a convolution; give lower_conv=True"):
            teraedge.from_torch(nn.Conv2d(1, 1, 3), **keywords)
    with pytest.raises(ModelError, match="give input_shape, such as"):
        teraedge.from_torch(nn.Conv2d(1, 1, 3), lower_conv=True)
    with pytest.raises(ModelError, match="reads 1 channels of 2 sizes and is given"):
        teraedge.from_torch(nn.Conv2d(1, 1, 3), lower_conv=True, input_shape=(25,))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Product(nn.Module):
    def forward(self, x):
        return x * x


class Hooked(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.register_forward_hook(lambda module, given, output: output * 2)


class Meta(nn.Linear):
    def __init__(self):
        super().__init__(3, 3, device="meta")


REFUSED = {
    r"MaxPool2d \(module 0\) is not supported: give the layers after it": nn.MaxPool2d(2),
    r"LayerNorm \(module 1\) .* train with BatchNorm1d": nn.Sequential(
        nn.Linear(3, 3), nn.LayerNorm(3)
    ),
    r"LeakyReLU .* train with ReLU": nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU()),
    r"LSTM .* supported are Linear": nn.LSTM(3, 3),
    r"TransformerEncoderLayer .* linear parts": nn.TransformerEncoderLayer(4, 2),
    r"softmax|Softmax \(module 1\) is followed by Linear": nn.Sequential(
        nn.Linear(3, 3), nn.Softmax(1), nn.Linear(3, 3)
    ),
    r"goes over axis 0 of 2; give axis 1": nn.Sequential(nn.Linear(3, 3), nn.Softmax(0)),
    r"reads 4 numbers a sample and is given 3": nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 3)),
    r"running statistics": nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)
    ),
    r"torch.fx cannot trace Branches .* without control flow": Branches(),
    r"has 2 inputs; give a module of": TwoInputs(),
    r"the shape of the input is not known": nn.ReLU(),
    r"has the hook function": nn.Sequential(Hooked()),
    r"has no values yet": Meta(),
    r"the model is a list; give a torch.nn.Module": [nn.Linear(3, 3)],
    r"flattens the axis of samples": nn.Sequential(nn.Linear(3, 3), nn.Flatten(0)),
}


@pytest.mark.parametrize("message", REFUSED, ids=lambda text: re.sub(r"\W+", " ", text)[:30])
def test_what_is_not_supported_is_refused_by_name(message):
    with pytest.raises(TeraedgeError, match=message) as caught:
        teraedge.from_torch(REFUSED[message])
    assert "\n" not in str(caught.value)


def test_products_of_values_are_refused():
    with pytest.raises(ModelError, match="a product of two values"):
        teraedge.from_torch(Product(), input_shape=(3,))


def test_a_subclass_with_another_forward_is_looked_into():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert_same(nn.Sequential(Doubled(4, 3), nn.ReLU()), (4,))


@st.composite
def chains(draw):
    """Modules of any supported operations in any order."""
    width = draw(st.integers(1, 9))
    first, parts = width, []
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["linear", "norm", "activation", "residual"]))
        if kind == "linear":
            after = draw(st.integers(1, 9))
            parts.append(nn.Linear(width, after, bias=draw(st.booleans())))
            with torch.no_grad():
                parts[-1].weight *= torch.rand_like(parts[-1].weight) < 0.5
            width = after
        elif kind == "norm":
            parts.append(batch_norm(width, draw(st.integers(0, 9))))
        elif kind == "activation":
            parts.append(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]())
        else:
            inner = draw(st.sampled_from([nn.ReLU(), nn.GELU(), nn.SiLU()]))
            parts.append(Sum(nn.Sequential(nn.Linear(width, 5), inner, nn.Linear(5, width))))
    head = draw(st.sampled_from([[], [nn.Softmax(1)], [nn.LogSoftmax(-1)]]))
    return nn.Sequential(*parts, *head), first


class Sum(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_any_chain(drawn):
    module, width = drawn
    module.eval()
    assert_same(module, (width,), 1e-5, input_shape=(width,))


LAYERS = [Identity(), ReLU(), ClippedReLU(6), ClippedReLU(2), Hardtanh(-1, 2), Sigmoid(), Tanh()]


@pytest.mark.parametrize(
    "activation", [*LAYERS, GELU(), GELU("tanh"), SiLU(), Hardtanh(None, 1)], ids=repr
)
def test_to_torch(activation):
    rng = np.random.default_rng(0)
    layers = [
        Layer(rng.normal(size=(5, 7)) * (rng.random((5, 7)) < 0.4), -0.5, activation),
        Layer(rng.normal(size=(7, 3)).astype(np.float32), None),
    ]
    network = Network(layers, head="softmax")
    module = teraedge.to_torch(network)
    assert module[0].weight.dtype == torch.float64
    assert not module.training
    x = rng.normal(size=(20, 5))
    got = module.double()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, teraedge.reference.run(network, x).outputs, atol=1e-12)


@pytest.mark.parametrize("head", [None, "softmax", "log_softmax"])
def test_round_trip(head):
    rng = np.random.default_rng(1)
    layers = [
        Layer((rng.integers(-1, 2, (6, 6))).astype(np.float32), rng.normal(size=6), activation)
        for activation in [*LAYERS, GELU(), GELU("tanh"), SiLU()]
    ]
    network = Network(layers, head=head)
    again = teraedge.from_torch(teraedge.to_torch(network))
    assert again.head == head
    assert len(again) == len(network)
    for ours, theirs in zip(again, network, strict=True):
        assert ours.activation == theirs.activation
        np.testing.assert_array_equal(ours.weights.toarray(), theirs.weights.toarray())
        np.testing.assert_array_equal(ours.bias, theirs.bias.astype(np.float32))


class Unused(nn.Module):
    """A softmax that the answer does not depend on, and a dropout after one that it does."""

    def __init__(self, used):
        super().__init__()
        self.linear, self.used = nn.Linear(6, 5), used

    def forward(self, x):
        y = self.linear(x)
        probabilities = F.dropout(F.softmax(y, dim=1), training=self.training)
        return probabilities if self.used else F.relu(y)


def test_only_a_head_that_the_answer_depends_on_counts():
    assert assert_same(Unused(False), (6,)).head is None
    assert assert_same(Unused(True), (6,)).head == "softmax"
    with pytest.raises(ModelError, match="ends with log_softmax of softmax; give it one"):
        teraedge.from_torch(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.LogSoftmax(1)))
