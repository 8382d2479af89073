"""scikit-learn's perceptrons become networks with the same answers."""

import numpy as np
import pytest

import teraedge
from teraedge.errors import ModelError

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    QuantileTransformer,
    StandardScaler,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*Maximum iterations|.*failed to converge")
X = np.random.default_rng(0).normal(size=(200, 6)) + 1
SCORE = X @ [1, -1, 0.5, 0, 0, 2.0]
THREE = np.digitize(SCORE, [1.5, 3.5])


def classifier(activation="relu", **keywords):
    return MLPClassifier(
        hidden_layer_sizes=[9, 7], activation=activation, max_iter=30, random_state=0, **keywords
    )


def run(network, features):
    return teraedge.compile(network).run(features).outputs


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classifiers(activation, classes):
    names = np.array(["no", "yes", "perhaps"])[np.minimum(THREE, classes - 1)]
    model = classifier(activation).fit(X, names)
    network = teraedge.from_sklearn(model)
    assert (network.name, network.n_out, network.head) == ("MLPClassifier", classes, "softmax")
    assert network.edges == 6 * 9 + 9 * 7 + 7 * (1 if classes == 2 else 3)
    np.testing.assert_allclose(
        teraedge.reference.run(network, X).outputs, model.predict_proba(X), atol=1e-14
    )
    np.testing.assert_allclose(run(network, X), model.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(model.classes_[network.predict(X)], model.predict(X))


def test_several_labels_a_sample():
    labels = np.stack([SCORE > 1, SCORE > 3, X[:, 0] > 1], axis=1).astype(int)
    model = classifier().fit(X, labels)
    network = teraedge.from_sklearn(model)
    assert network.head is None
    np.testing.assert_allclose(run(network, X), model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_regressors(outputs):
    target = np.stack([SCORE, -SCORE], axis=1)[:, :outputs]
    model = MLPRegressor(hidden_layer_sizes=[9], max_iter=30, random_state=0).fit(
        X, target.squeeze()
    )
    network = teraedge.from_sklearn(model)
    expected = model.predict(X).reshape(len(X), -1)
    np.testing.assert_allclose(teraedge.reference.run(network, X).outputs, expected, atol=1e-12)


@pytest.mark.parametrize(
    "scaler",
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        MinMaxScaler((-1, 2)),
        MaxAbsScaler(),
    ],
    ids=repr,
)
def test_scalers_are_folded_into_the_first_layer(scaler):
    model = make_pipeline(scaler, "passthrough", classifier()).fit(X, THREE)
    network = teraedge.from_sklearn(model)
    assert len(network) == 3
    np.testing.assert_allclose(
        teraedge.reference.run(network, X).outputs, model.predict_proba(X), atol=1e-12
    )


def test_float32_stays_float32():
    model = classifier().fit(X.astype(np.float32), THREE)
    assert {layer.weights.dtype for layer in teraedge.from_sklearn(model)} == {np.dtype("f4")}


def test_others_are_refused_by_name():
    fitted = classifier().fit(X, THREE)
    cases = {
        r"LogisticRegression is not supported: give a fitted MLPClassifier": LogisticRegression(),
        r"the MLPClassifier is not fitted; call fit": classifier(),
        r"MinMaxScaler, which clips, is not supported": make_pipeline(
            MinMaxScaler(clip=True), fitted
        ),
        r"QuantileTransformer is not supported: apply it": make_pipeline(
            QuantileTransformer(), fitted
        ),
        r"the StandardScaler is not fitted": make_pipeline(StandardScaler(), fitted),
        r"list is not supported": [],
    }
    for message, estimator in cases.items():
        with pytest.raises(ModelError, match=message):
            teraedge.from_sklearn(estimator)
