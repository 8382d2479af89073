"""The passes in a row, from a layer and the one after it to the layers that run."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from teraedge.activations import Identity
from teraedge.network import Layer
from teraedge.passes.draft import NONE, Draft, Wiring
from teraedge.passes.drop_unread import drop_unread
from teraedge.passes.drop_zeros import drop_zeros
from teraedge.passes.factor import factor
from teraedge.passes.fold_constants import fold_constants
from teraedge.passes.merge_neurons import merge_neurons


@dataclass
class Begun:
    """A layer after the passes that look at nothing before it.

    Attributes
    ----------
    given, lean : Layer
        As it came, and without explicit zeros.
    draft : Draft or None
        None where there are no passes.
    last : bool
        Whether it is the network's last.
    saved : Counter
        Edges saved so far, by pass.
    """

    given: Layer
    lean: Layer
    draft: Draft | None
    last: bool
    saved: Counter[str] = field(default_factory=Counter)


class Rewriter:
    """Rewrites the layers of a network in their order.

    A layer is rewritten in two steps: `begin`, which may run in any thread for several layers at a
    time, and `finish`, one layer after the other.

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
        return self.finish(self.begin(layer, following))

    def begin(self, layer: Layer, following: Layer | None) -> Begun:
        """Take a layer through what does not depend on those before it; changes nothing here."""
        begun = Begun(layer, layer, None, following is None)
        if not self._passes:
            return begun
        if "drop_zeros" in self._passes:
            begun.lean = drop_zeros(layer)
            begun.saved["drop_zeros"] = layer.edges - begun.lean.edges
        draft = begun.draft = Draft.of(begun.lean)
        if following is not None:
            self._try("drop_unread", begun, lambda: drop_unread(draft, following))
        # Before inputs are joined too, as that is much less work where this finds something.
        self._try("merge_neurons", begun, lambda: merge_neurons(draft))
        return begun

    def finish(self, begun: Begun) -> list[Layer]:
        """Return the layers that run in place of the next layer of the network."""
        draft = begun.draft
        if draft is None:
            return [begun.given]
        draft.inputs = self.inputs
        self._join(begun, draft)
        if begun.last:
            parts = self._last(begun, draft)
        else:
            self._try("fold_constants", begun, lambda: fold_constants(draft))
            self.inputs = draft.outputs()
            parts = self._layers(begun, draft)
        self.saved.update(begun.saved)
        return parts

    def _last(self, begun: Begun, draft: Draft) -> list[Layer]:
        """Rewrite the last layer, whose neurons are the answer and must all be there at the end."""
        spread = draft.outputs().spread()  # one more layer, which gives merged neurons back
        plain = Draft.of(begun.lean)
        plain.inputs = self.inputs
        plain.absorb()
        if draft.edges + spread.nnz < plain.edges:
            begun.saved["merge_neurons"] -= spread.nnz
            return [*self._layers(begun, draft), Layer(spread)]
        begun.saved["merge_neurons"] -= plain.edges - draft.edges
        return self._layers(begun, plain)

    def _join(self, begun: Begun, draft: Draft) -> None:
        """Join the inputs that run as one, and merge the columns that become equal."""
        if self.inputs.trivial:
            return
        folded = int((self.inputs.source[draft.weights.indices] == NONE).sum())
        before = draft.edges
        draft.absorb()
        begun.saved["fold_constants"] += folded
        begun.saved["merge_neurons"] += before - folded - draft.edges
        self._try("merge_neurons", begun, lambda: merge_neurons(draft))

    def _try(self, name: str, begun: Begun, apply: Callable[[], None]) -> None:
        if name in self._passes and begun.draft is not None:
            before = begun.draft.edges
            apply()
            begun.saved[name] += before - begun.draft.edges

    def _layers(self, begun: Begun, draft: Draft) -> list[Layer]:
        factored = factor(draft) if "factor" in self._passes else None
        if factored is not None:
            edges = factored.adding.nnz + factored.kernel.nnz
            begun.saved["factor"] += draft.edges - edges
            adding = Layer._of_valid(factored.adding, None, Identity())
            return [adding, Layer._of_valid(factored.kernel, draft.bias, draft.activation)]
        if draft.untouched:
            return [begun.lean]
        return [Layer._of_valid(draft.weights, draft.bias, draft.activation)]
