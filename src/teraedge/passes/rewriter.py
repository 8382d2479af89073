"""The passes in a row, from a layer and the one after it to the layers that run."""

from collections import Counter
from collections.abc import Callable, Iterable

from teraedge.activations import Identity
from teraedge.network import Layer
from teraedge.passes.draft import NONE, Draft, Wiring
from teraedge.passes.drop_unread import drop_unread
from teraedge.passes.drop_zeros import drop_zeros
from teraedge.passes.factor import factor
from teraedge.passes.fold_constants import fold_constants
from teraedge.passes.merge_neurons import merge_neurons


class Rewriter:
    """Rewrites the layers of a network in their order.

    Parameters
    ----------
    passes : iterable of str
        Names from `PASSES`.
    inputs : Wiring
        Of the neurons that the next layer to come reads.

    Attributes
    ----------
    inputs : Wiring
        What the next layer will read; a rewriter made with it goes on from there.
    saved : Counter
        Edges a sample need no longer execute, by pass.
    """

    def __init__(self, passes: Iterable[str], inputs: Wiring) -> None:
        self._passes = frozenset(passes)
        self.inputs = inputs
        self.saved: Counter[str] = Counter()

    def rewrite(self, layer: Layer, following: Layer | None) -> list[Layer]:
        """Return the layers that run in place of one; `following` is None after the last."""
        if not self._passes:
            return [layer]
        lean = drop_zeros(layer) if "drop_zeros" in self._passes else layer
        self.saved["drop_zeros"] += layer.edges - lean.edges
        if following is None:
            return self._last(lean)
        draft = Draft.of(lean, self.inputs)
        self._try("drop_unread", draft, lambda: drop_unread(draft, following))
        self._join(draft)
        self._try("fold_constants", draft, lambda: fold_constants(draft))
        self.inputs = draft.outputs()
        return self._layers(draft, lean)

    def _last(self, lean: Layer) -> list[Layer]:
        """Rewrite the last layer, whose neurons are the answer and must all be there at the end."""
        draft = Draft.of(lean, self.inputs)
        self._join(draft)
        spread = draft.outputs().spread()  # one more layer, which gives merged neurons back
        plain = Draft.of(lean, self.inputs)
        plain.absorb()
        if draft.edges + spread.nnz < plain.edges:
            self.saved["merge_neurons"] -= spread.nnz
            return [*self._layers(draft, lean), Layer(spread)]
        self.saved["merge_neurons"] -= plain.edges - draft.edges
        return self._layers(plain, lean)

    def _join(self, draft: Draft) -> None:
        """Merge equal columns, before and after the inputs that run as one are joined.

        Before, because that makes the joining much less work where it finds something.
        """
        self._try("merge_neurons", draft, lambda: merge_neurons(draft))
        if self.inputs.trivial:
            return
        folded = int((self.inputs.source[draft.weights.indices] == NONE).sum())
        before = draft.edges
        draft.absorb()
        self.saved["fold_constants"] += folded
        self.saved["merge_neurons"] += before - folded - draft.edges
        self._try("merge_neurons", draft, lambda: merge_neurons(draft))

    def _try(self, name: str, draft: Draft, apply: Callable[[], None]) -> None:
        if name in self._passes:
            before = draft.edges
            apply()
            self.saved[name] += before - draft.edges

    def _layers(self, draft: Draft, given: Layer) -> list[Layer]:
        factored = factor(draft) if "factor" in self._passes else None
        if factored is not None:
            edges = factored.adding.nnz + factored.kernel.nnz
            self.saved["factor"] += draft.edges - edges
            adding = Layer(factored.adding, None, Identity())
            return [adding, Layer(factored.kernel, draft.bias, draft.activation)]
        if draft.untouched:
            return [given]
        return [Layer(draft.weights, draft.bias, draft.activation)]
