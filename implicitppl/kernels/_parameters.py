"""What can be learned in a kernel: its parameters, their names and their constraints.

Fields of kernels declare the numbers they hold (`_fields`). Everything that learns a kernel reads
those declarations: `parameters` lists them, `unconstrain` and `constrain` map a kernel to one of
equal structure over the whole real line and back, and the priors of `ip.distributions` are chosen
by kind.

    positive:   x = exp(u)        real:   x = u

The logarithm, and not a softplus, because it commutes with a change of units: with data in metres
or in kilometres an optimiser takes the same path.

A number of a plain module inside a kernel (the weights of a network that warps its inputs) is
real. A number of a *kernel* without a declaration is refused: taken as real it would leave the
range in which the kernel is a covariance, without a word.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from implicitppl.kernels._base import Kernel
from implicitppl.kernels._fields import Declaration, declaration_of

T = TypeVar("T")


class Parameter(NamedTuple):
    """One array of numbers in a kernel that can be learned.

    Attributes:
        value: the constrained value.
        kind: what it is: "lengthscale", "variance", "period", "weight", ...; priors go by it.
        is_positive: whether it must be above 0; it is any real number otherwise.
    """

    value: Array
    kind: str
    is_positive: bool


def parameters(kernel: Any) -> dict[str, Parameter]:
    """Return every parameter of a kernel by its name: the path of attributes that leads to it.

    Args:
        kernel: a kernel, or any module that holds kernels.

    Returns:
        Parameters in the order of the kernel's leaves, named like "first.lengthscale" or
        "primitives[0].variance".

    Raises:
        ValueError: if a kernel holds numbers in a field that declares nothing.

    Example:
        >>> from implicitppl.kernels import RBF, parameters
        >>> list(parameters(RBF(0.5) + 2.0 * RBF()))[:3]
        ['first.lengthscale', 'first.variance', 'second.kernel.lengthscale']
    """
    return {
        name: Parameter(_array(value), declaration.kind, declaration.is_positive)
        for name, value, declaration in _walk(kernel)
    }


def as_arrays(kernel: T) -> T:
    """Return a kernel whose numbers are all arrays, so that new values need no new program.

    A Python number in a module is part of its structure: `jit` compiles anew for every value.
    """
    return jax.tree.map(_array_if_number, kernel)


def unconstrain(kernel: T) -> T:
    """Return a kernel of equal structure whose numbers may be anything; `constrain` undoes it.

    The result is not a covariance: it is what an optimiser moves.

    Raises:
        ValueError: if a kernel holds numbers in a field that declares nothing.

    Example:
        >>> from implicitppl.kernels import RBF, constrain, unconstrain
        >>> round(float(constrain(unconstrain(RBF(0.5))).lengthscale), 6)
        0.5
    """
    return _map(kernel, _to_real)


def constrain(kernel: T) -> T:
    """Return the kernel of which `unconstrain` gave this one."""
    return _map(kernel, _from_real)


def _map(kernel: T, function: Callable[[Array, Declaration], Array]) -> T:
    arrays = as_arrays(kernel)
    declarations = [declaration for _, _, declaration in _walk(arrays)]
    leaves, structure = jax.tree.flatten(arrays)
    remaining = iter(declarations)
    mapped = [function(x, next(remaining)) if eqx.is_inexact_array(x) else x for x in leaves]
    return jax.tree.unflatten(structure, mapped)


def _to_real(x: Array, declaration: Declaration) -> Array:
    return jnp.log(x) if declaration.is_positive else x


def _from_real(u: Array, declaration: Declaration) -> Array:
    return jnp.exp(u) if declaration.is_positive else u


def _walk(tree: Any) -> Iterator[tuple[str, Any, Declaration]]:
    """Yield name, value and declaration of every number, in the order of the leaves."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if _is_number(leaf):
            yield jax.tree_util.keystr(path).lstrip("."), leaf, _declaration(tree, path)


def _declaration(tree: Any, path: tuple[Any, ...]) -> Declaration:
    owner, field, node = tree, "", tree
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            owner, field, node = node, key.name, getattr(node, key.name)
        else:
            node = node[getattr(key, "idx", getattr(key, "key", None))]
    declaration = declaration_of(owner, field)
    if declaration is None and isinstance(owner, Kernel):
        raise ValueError(
            f"field `{field}` of {type(owner).__name__} holds numbers and does not say which: "
            "declare it with `ip.kernels.positive(..., kind=...)` or `ip.kernels.real(..., "
            "kind=...)`, or make it static with `eqx.field(static=True)`."
        )
    return Declaration(False, "weight") if declaration is None else declaration


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, bool):
        return False
    return isinstance(leaf, float | int | np.floating) or (
        eqx.is_array_like(leaf) and jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
    )


def _array(value: Any) -> Array:
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def _array_if_number(leaf: Any) -> Any:
    return _array(leaf) if _is_number(leaf) else leaf
