"""How a field of a kernel declares what it holds: `lengthscale: Lengthscale = positive(1.0, ...)`.

The value of the field is the constrained one, in the user's units; the declaration is what
learning reads (`_parameters`).
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx


class Declaration(NamedTuple):
    """What a field says of the numbers it holds: whether they are positive, and their kind."""

    is_positive: bool
    kind: str


def positive(default: Any = dataclasses.MISSING, *, kind: str) -> Any:
    """Declare a field of a kernel that holds positive numbers.

    Args:
        default: the field's default, if it has one.
        kind: what the numbers are; default priors go by it ("lengthscale", "variance", "period",
            "frequency", "weight", "bias", "exponent", "mixture"; others are allowed).

    Example:
        >>> import jax.numpy as jnp
        >>> from implicitppl.kernels import Kernel, parameters, positive
        >>> class Triangle(Kernel):
        ...     width: float = positive(1.0, kind="lengthscale")
        ...
        ...     def __call__(self, x, y):
        ...         return jnp.maximum(1 - jnp.abs(x - y)[0] / self.width, 0)
        >>> parameters(Triangle(2.0))["width"].kind
        'lengthscale'
    """
    return _declared(default, Declaration(True, kind))


def real(default: Any = dataclasses.MISSING, *, kind: str) -> Any:
    """Declare a field of a kernel that holds any real numbers; see `positive`."""
    return _declared(default, Declaration(False, kind))


def _declared(default: Any, declaration: Declaration) -> Any:
    given = {} if default is dataclasses.MISSING else {"default": default}
    return eqx.field(metadata={"parameter": declaration}, **given)


def declaration_of(owner: object, field: str) -> Declaration | None:
    """Return what a module's field declares, or None."""
    for known in dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ():
        if known.name == field:
            return known.metadata.get("parameter")
    return None
