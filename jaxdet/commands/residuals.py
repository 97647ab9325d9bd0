"""What a backward pass waits for, estimated from the traced program: nothing is compiled."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# XLA fuses these into what needs their results, so that it makes them anew where it is cheaper
# to wait for what they are made of. One that a later JAX calls otherwise counts for itself.
MADE_ANEW = frozenset(
    "abs add add_any and broadcast_in_dim clamp concatenate convert_element_type copy cos div eq "
    "erf exp exp2 expand_dims expm1 floor ge gt integer_pow iota is_finite le log log1p logistic "
    "lt max min mul ne neg not one_minus_square optimization_barrier or pad pow reduce_precision "
    "reshape rev round rsqrt select_n sign sin slice split sqrt square squeeze stop_gradient sub "
    "tanh tile transpose xor".split()
)
# These read what such a chain ends in without its being written down before.
READ_ALONG = MADE_ANEW | frozenset(
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split()
)
PASSED = ("jvp", "vmap", "jit")  # Of a place: what JAX has made of the code.


class Kept(NamedTuple):
    """An array that the backward pass waits for.

    Attributes:
        place: the part of the network that makes it.
        shape: the batch first, as a rule.
        dtype: its type.
        bytes: of it.
    """

    place: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


def estimate(function: Callable, arguments: Any, constants: Any) -> list[Kept]:
    """What `jax.vjp` of a function keeps, as far as XLA has to write it to memory.

    The residuals as they are traced are more: many are elementwise functions of others. One
    of those counts as what it is made of where that is kept anyway, or is smaller, each
    array shared among all residuals that are made of it. The arguments are there anyway.

    Args:
        function: `(arguments, constants) -> (value, anything)`.
        arguments: shapes and types of what it is differentiated by, a tree.
        constants: likewise, of what it takes beside them.

    Returns:
        The largest first.
    """

    def residuals(arguments: Any, constants: Any) -> list[jax.Array]:
        _, pullback, _ = jax.vjp(lambda a: function(a, constants), arguments, has_aux=True)
        return jax.tree.leaves(pullback)

    jaxpr = jax.make_jaxpr(residuals)(arguments, constants).jaxpr
    found = _follow(jaxpr, [_Node(var.aval) for var in jaxpr.invars])
    kept = {node for node in found if node.written}
    missing = {node: node.made_of() - kept for node in set(found) - kept}
    uses = Counter(other for others in missing.values() for other in others)
    for node, others in missing.items():
        shared = sum(other.bytes / uses[other] for other in others)
        kept |= others if shared <= node.bytes else {node}
    real = [node for node in kept if node.place is not None]
    rows = [Kept(n.place, tuple(n.aval.shape), str(n.aval.dtype), n.bytes) for n in real]
    return sorted(rows, key=lambda each: (-each.bytes, each))


class _Node:
    """A value of the program; without a place it is an argument, or a number."""

    def __init__(self, aval: Any, made: bool = False, inputs: Sequence["_Node"] = (), place=None):
        self.aval, self.inputs, self.place = aval, inputs, place
        self.written = not made  # Or once something reads it from memory.
        self._made_of: frozenset[_Node] | None = None

    @property
    def bytes(self) -> int:
        if jax.dtypes.issubdtype(self.aval.dtype, jax.dtypes.extended):
            return 0  # Keys of random numbers.
        return math.prod(self.aval.shape) * self.aval.dtype.itemsize

    def made_of(self) -> frozenset["_Node"]:
        """What is written, of all that it is made of."""
        if self.written:
            return frozenset([self])
        if self._made_of is None:
            self._made_of = frozenset().union(*(node.made_of() for node in self.inputs))
        return self._made_of


def _follow(jaxpr: Jaxpr, inputs: Sequence[_Node], outside: str = "") -> list[_Node]:
    """The values that a program returns; programs that it calls are gone through, too."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {var: _Node(var.aval) for var in jaxpr.constvars}

    def look(atom):
        return _Node(atom.aval) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        name, given = eqn.primitive.name, [look(atom) for atom in eqn.invars]
        place = f"{outside}/{eqn.source_info.name_stack}"
        called = _called(eqn)
        if called is not None:
            made = _follow(called, given, place)
        else:
            if name not in READ_ALONG:
                for node in given:
                    node.written = True
            short = _shorten(place)
            made = [_Node(v.aval, name in MADE_ANEW, given, short) for v in eqn.outvars]
        known |= dict(zip(eqn.outvars, made, strict=True))
    return [look(atom) for atom in jaxpr.outvars]


def _called(eqn: Any) -> Jaxpr | None:
    """The program that an equation calls once, as it stands."""
    if eqn.primitive.name not in ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call"):
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def _shorten(place: str) -> str:
    """As the parameters' paths have it: "backbone/layer1/block0"."""
    parts = [part for part in re.split(r"[/()]", place) if part]
    # Methods have a dot, modules without a name of their own a capital.
    kept = [p for p in parts if p not in PASSED and "." not in p and not p[0].isupper()]
    return "/".join(dict.fromkeys(kept)) or "loss"
