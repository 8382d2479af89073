"""scikit-learn's multi-layer perceptrons as networks."""

from typing import TYPE_CHECKING, Any

import numpy as np

from teraedge.activations import Activation, Identity, ReLU, Sigmoid, Tanh
from teraedge.errors import ModelError
from teraedge.formats import _chain
from teraedge.formats._chain import Value
from teraedge.network import Network

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

_ACTIVATIONS: dict[str, Activation] = {
    "identity": Identity(),
    "relu": ReLU(),
    "logistic": Sigmoid(),
    "tanh": Tanh(),
}
_SCALERS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler")
_MODELS = ("MLPClassifier", "MLPRegressor")


def from_sklearn(estimator: "BaseEstimator") -> Network:
    """Make a network of a fitted perceptron of scikit-learn.

    Outputs are those of ``predict_proba`` (`MLPClassifier`) or ``predict`` (`MLPRegressor`), and
    `Network.predict` counts classes from 0: ``estimator.classes_[network.predict(X)]`` is
    ``estimator.predict(X)``. Of two classes scikit-learn computes one number z; the network has
    two, 0 and z, and a softmax, which is the same. Of a classifier with several labels a sample,
    outputs are the probability of each label.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, or Pipeline
        Fitted. A pipeline may scale features first (StandardScaler, MinMaxScaler without clip,
        MaxAbsScaler), which is folded into the first layer.

    Returns
    -------
    Network

    Raises
    ------
    ModelError
        If it is another estimator, or not fitted.

    Examples
    --------
    >>> import pytest; _ = pytest.importorskip("sklearn")
    >>> from sklearn.neural_network import MLPRegressor
    >>> model = MLPRegressor(hidden_layer_sizes=[8], solver="lbfgs", max_iter=500)
    >>> model = model.fit([[0.0], [1.0]], [0.0, 1.0])
    >>> from_sklearn(model)
    Network('MLPRegressor', 2 layers, 1 -> 1, 16 edges)
    """
    steps = [step for _, step in getattr(estimator, "steps", [("", estimator)])]
    *scalers, model = [step for step in steps if step not in (None, "passthrough")] or [estimator]
    kind = _kind(model, _MODELS)
    if kind is None:
        raise ModelError(
            f"{type(model).__name__} is not supported: give a fitted MLPClassifier or "
            f"MLPRegressor, or a Pipeline of {', '.join(_SCALERS)} and one of them at the end"
        )
    if not hasattr(model, "coefs_"):
        raise ModelError(f"the {kind} is not fitted; call fit first")
    x = Value((len(model.coefs_[0]),), where="the input")
    for scaler in scalers:
        x = _scaled(x, scaler)
    hidden = _ACTIVATIONS[model.activation]
    last = len(model.coefs_) - 1
    for index, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        where = f"layer {index} of {kind}"
        if index == last and kind == "MLPClassifier" and _is_binary(model):
            weights = np.hstack([np.zeros_like(weights), weights])
            bias = np.concatenate([np.zeros_like(bias), bias])
        x = _chain.linear(x, weights, bias, where)
        if index < last:
            x = _chain.activated(x, hidden, where)
    head, out = None, model.out_activation_
    if out == "softmax" or (kind == "MLPClassifier" and _is_binary(model)):
        head = "softmax"
    else:
        x = _chain.activated(x, _ACTIVATIONS[out], f"the output of {kind}")
    return _chain.chain(x, dtype=model.coefs_[0].dtype, head=head, name=kind)


def _kind(estimator: Any, names: tuple[str, ...]) -> str | None:
    """Return the class that an estimator is of, among some of scikit-learn's."""
    for parent in type(estimator).__mro__:
        if parent.__module__.startswith("sklearn.") and parent.__name__ in names:
            return parent.__name__
    return None


def _is_binary(model: Any) -> bool:
    """Tell whether there are two classes, for which there is one output."""
    return bool(model.n_outputs_ == 1 and len(model.classes_) == 2)


def _scaled(x: Value, scaler: Any) -> Value:
    kind = _kind(scaler, _SCALERS)
    if kind is None or getattr(scaler, "clip", False):
        clips = ", which clips," if kind else ""
        raise ModelError(
            f"{type(scaler).__name__}{clips} is not supported: apply it to the features, or use "
            f"one of {', '.join(_SCALERS)} without clip"
        )
    if not hasattr(scaler, "n_features_in_"):
        raise ModelError(f"the {kind} is not fitted; call fit first")
    if kind == "MinMaxScaler":
        return _chain.scaled(x, scaler.scale_, scaler.min_, kind)
    scale = 1.0 if scaler.scale_ is None else 1 / scaler.scale_
    mean = getattr(scaler, "mean_", None)
    shift = 0.0 if mean is None or not scaler.with_mean else -mean * scale
    return _chain.scaled(x, scale, shift, kind)
