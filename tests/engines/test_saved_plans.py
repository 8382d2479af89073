"""Plans that are saved and loaded: the same answers, and every kind of wrong file refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from engines_networks import NETWORKS, make_features
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import teraedge
from teraedge import GELU, Hardtanh, Layer, Network, Options, Tanh
from teraedge.engines.cpu import engine as cpu_engine
from teraedge.errors import FormatError, ModelError, OptionsError
from teraedge.plan.saved import save_plan


@pytest.fixture
def path(tmp_path):
    return tmp_path / "plan.safetensors"


@pytest.fixture
def saved(path):
    """A small plan with all kinds of arrays in it: padded, equal and single neurons."""
    engine = teraedge.compile(NETWORKS["shared inputs"])
    engine.save(path)
    return path


OPTIONS = {"a": Options.mode("a"), "b": Options.mode("b"), "c": Options.mode("c")}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name, options, path):
    network = NETWORKS[name]
    features = make_features(network, 150)
    engine = teraedge.compile(network, options=OPTIONS[options])
    engine.save(path)
    loaded = teraedge.load_plan(path, network=network)
    ours, theirs = loaded.run(features), engine.run(features)
    np.testing.assert_array_equal(ours.outputs, theirs.outputs)
    assert [layer.live for layer in ours.trace] == [layer.live for layer in theirs.trace]
    assert (ours.nominal_edges, ours.passes) == (theirs.nominal_edges, theirs.passes)
    assert loaded.options == engine.options
    assert repr(loaded) == repr(engine)


def test_curves_and_heads_are_saved(path):
    layers = [
        Layer(layer.weights * np.float32(0.1), 0.5, activation)
        for layer, activation in zip(
            NETWORKS["rectangular"], [GELU(), Hardtanh(), GELU("tanh"), Tanh()], strict=True
        )
    ]
    network = Network(layers, head="softmax")
    features = make_features(network, 50)
    engine = teraedge.compile(network)
    engine.save(path)
    loaded = teraedge.load_plan(path, network=network)
    np.testing.assert_array_equal(loaded.run(features).outputs, engine.run(features).outputs)
    with pytest.raises(FormatError, match="another network"):
        teraedge.load_plan(path, network=Network(layers))
    layers = json.loads(safe_open(path, "numpy").metadata()["layers"])
    layers[0]["values"]["curve"] = "bogus"
    _change(path, layers=json.dumps(layers))
    with pytest.raises(FormatError, match="curve is 'bogus'"):
        teraedge.load_plan(path)


@pytest.mark.parametrize("memory", [2000, "20KB"])
def test_what_is_streamed_is_saved_too(memory, path):
    """Of a plan that does not fit in memory all layers are in the file, also after loading."""
    network = NETWORKS["two hundred layers"]
    engine = teraedge.compile(network, options=Options(memory=memory, passes=False))
    assert len(engine._plan.resident) < 200
    engine.save(path)
    loaded = teraedge.load_plan(path)
    assert len(loaded._plan.resident) < 200
    features = make_features(network, 70)
    expected = teraedge.reference.run(network, features)
    np.testing.assert_array_equal(loaded.run(features).outputs, expected.outputs)
    in_memory = teraedge.load_plan(path, options=Options(passes=False))
    assert len(in_memory._plan.resident) == len(in_memory._plan.origin)
    np.testing.assert_array_equal(in_memory.run(features).outputs, expected.outputs)


def test_shards(tmp_path):
    network = NETWORKS["two hundred layers"]
    engine = teraedge.compile(network)
    save = (engine._plan, engine.options, cpu_engine._ENGINE, cpu_engine.pack_panels)
    save_plan(tmp_path / "p.safetensors", *save, shard_size=20_000)
    assert len(list(tmp_path.glob("p-*-of-*.safetensors"))) > 3
    features = make_features(network, 70)
    expected = engine.run(features).outputs
    loaded = teraedge.load_plan(tmp_path / "p.safetensors")
    np.testing.assert_array_equal(loaded.run(features).outputs, expected)
    sorted(tmp_path.glob("p-*.safetensors"))[1].unlink()
    with pytest.raises(FormatError, match="no such file"):
        teraedge.load_plan(tmp_path / "p.safetensors")


def test_a_loaded_plan_can_be_saved(saved, tmp_path):
    teraedge.load_plan(saved).save(tmp_path / "again.safetensors")
    assert _contents(tmp_path / "again.safetensors") == _contents(saved)


def _contents(path):
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name).tolist() for name in sorted(file.keys())}
        return file.metadata(), tensors


def test_layers_are_mapped(saved):
    layer = teraedge.load_plan(saved)._plan.resident[0]
    assert not layer.tall.outputs.flags.owndata
    assert not layer.tall.outputs.flags.writeable


def test_run_options_may_differ(saved):
    options = Options(threads=1, merge=False, memory="1GB")
    assert teraedge.load_plan(saved, options=options).options == options


@pytest.mark.parametrize("change", [{"prune": False}, {"passes": False}, {"passes": ("factor",)}])
def test_options_that_decide_the_plan_must_be_the_same(change, saved):
    with pytest.raises(FormatError, match=r"was compiled with .* compile the network with"):
        teraedge.load_plan(saved, options=replace(Options(), **change))


def test_another_network_is_refused(saved):
    layers = list(NETWORKS["shared inputs"])
    layers[-1] = teraedge.Layer(layers[-1].weights, 0.25, layers[-1].activation)
    with pytest.raises(FormatError, match="compiled from another network"):
        teraedge.load_plan(saved, network=teraedge.Network(layers))
    with pytest.raises(ModelError, match="the network is a list"):
        teraedge.load_plan(saved, network=layers)
    with pytest.raises(OptionsError, match="options are a str"):
        teraedge.load_plan(saved, options="c")


def _change(path, edit=None, **metadata):
    """Write the file again with other tensors or metadata, nothing else amiss."""
    with safe_open(path, "numpy") as file:
        about = file.metadata()
    tensors = load_file(path)
    if edit is not None:
        edit(tensors)
    for name, value in metadata.items():
        about[name] = value(about[name]) if callable(value) else value
    save_file(tensors, path, {name: value for name, value in about.items() if value is not None})


def _engine(**values):
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teraedge": "0.0.1"}, "compiled by teraedge '0.0.1' and this is"),
        ({"format_version": "99"}, "has format version '99'"),
        ({"engine": _engine(lanes=999)}, "was compiled for lanes 999 and this machine has"),
        ({"engine": _engine(height=3)}, "was compiled for height 3"),
        ({"engine": _engine(layout=0)}, "was compiled for layout 0"),
        ({"engine": _engine(device="abacus")}, "is for the device 'abacus'"),
        ({"engine": "{}"}, "not that of a plan"),
        ({"network": "{}"}, "not that of a plan"),
        ({"options": '{"prune": 7}'}, "not that of a plan"),
        ({"options": "["}, "not JSON"),
        ({"layers": "[]"}, "not that of a plan"),
        ({"layers": lambda text: json.dumps(json.loads(text)[:-1])}, "not that of a plan"),
        ({"layers": lambda text: json.dumps(json.loads(text)[::-1])}, "not that of a plan"),
        ({"format": "other"}, "its metadata has no such format"),
    ],
)
def test_stale_and_foreign_plans(change, message, saved):
    _change(saved, **change)
    with pytest.raises(FormatError, match=message) as caught:
        teraedge.load_plan(saved)
    assert "\n" not in str(caught.value)


def _first(tensors, end):
    return next(name for name in tensors if name.endswith(end))


def _set(end, position, value):
    def edit(tensors):
        tensors[_first(tensors, end)][position] = value

    return edit


def _cut(end):
    def edit(tensors):
        tensors[_first(tensors, end)] = tensors[_first(tensors, end)][:-1].copy()

    return edit


def _cast(end, dtype):
    def edit(tensors):
        tensors[_first(tensors, end)] = tensors[_first(tensors, end)].astype(dtype)

    return edit


def _without(end):
    def edit(tensors):
        del tensors[_first(tensors, end)]

    return edit


def _repeat(tensors):
    outputs = tensors[_first(tensors, "tall.outputs")]
    outputs[0] = outputs[1]


def _extra(tensors):
    tensors["layers.999.bias"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("indices", 0, 65535), "indices must be below"),
        (_set("outputs", 0, 10**6), "outputs must be the neurons"),
        (_set("outputs", 0, -1), "outputs must be the neurons"),
        (
            lambda t: _set("tall.outputs", 0, t[_first(t, "tall.outputs")][1])(t),
            "every neuron once",
        ),
        (_set("starts", 1, 10**9), "must ascend"),
        (_set("starts", 0, 1), "must ascend"),
        (_set("bias", 0, np.nan), "finite"),
        (_cut("bias"), "bias must be"),
        (_cut("outputs"), "one more than"),
        (_cut("indices"), "must ascend"),
        (_cut("starts"), "one more than"),
        (_cast("bias", np.float64), "dtype that plans do not have"),
        (_cast("starts", np.int32), "is int32; it must be int64"),
        (_without("bias"), "bias must be"),
        (_without("outputs"), "one more than"),
        (_without("starts"), "one more than"),
        (_extra, "not that of a plan"),
    ],
)
def test_damaged_layers(edit, message, saved):
    _change(saved, edit)
    with pytest.raises(FormatError, match=message) as caught:
        teraedge.load_plan(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_truncated(share, saved):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FormatError, match="truncated"):
        teraedge.load_plan(saved)


def test_models_and_plans_are_not_confused(saved, tmp_path):
    with pytest.raises(FormatError, match=r"it is a plan: use teraedge\.load_plan"):
        teraedge.load(saved)
    model = tmp_path / "model.safetensors"
    teraedge.save(NETWORKS["rectangular"], model)
    before = model.read_bytes()
    with pytest.raises(FormatError, match=r"it is a model: use teraedge\.load"):
        teraedge.load_plan(model)
    with pytest.raises(FormatError, match="is a teraedge model; give the plan another name"):
        teraedge.load_plan(saved).save(model)
    with pytest.raises(FormatError, match="is a teraedge plan; give the model another name"):
        teraedge.save(NETWORKS["rectangular"], saved)
    assert model.read_bytes() == before


def test_wrong_paths(saved, tmp_path):
    engine = teraedge.load_plan(saved)
    with pytest.raises(FormatError, match=r"ends with \.safetensors"):
        engine.save(tmp_path / "plan.bin")
    with pytest.raises(FormatError, match="does not exist"):
        engine.save(tmp_path / "nowhere" / "plan.safetensors")
    with pytest.raises(FormatError, match="no such file"):
        teraedge.load_plan(tmp_path / "other.safetensors")
    before = _contents(saved)
    engine.save(saved)  # over the file whose layers it runs
    assert _contents(saved) == before
