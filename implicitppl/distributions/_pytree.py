"""PyTree registration that survives `jit` and `vmap` for distributions that hold a callable.

A sampler may be an Equinox module, whose leaves are arrays and activation functions. Arrays go to
the data fields of the distribution and everything else to the static ones, so that two
distributions of equal structure share one compiled program. NumPyro gathers field names through a
`set`, whose order depends on PYTHONHASHSEED; here the order is the one that the class states, so
that processes of one job agree on it.
"""

from typing import Any, ClassVar, Self

import equinox as eqx
from numpyro.distributions import Distribution


def split_callable(sampler: Any) -> tuple[Any, Any]:
    """Return the array leaves of a callable PyTree, and the rest of it."""
    return eqx.partition(sampler, eqx.is_array)


class OrderedDistribution(Distribution):
    """A distribution whose fields flatten in the order of `data_names` and `aux_names`."""

    data_names: ClassVar[tuple[str, ...]] = ()
    aux_names: ClassVar[tuple[str, ...]] = ()

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return the array fields and the static fields, each in the stated order."""
        data = tuple(getattr(self, name) for name in self.data_names)
        static = tuple(getattr(self, name) for name in self.aux_names)
        return data, (self.batch_shape, self.event_shape, *static)

    @classmethod
    def tree_unflatten(cls, aux_data: tuple[Any, ...], params: tuple[Any, ...]) -> Self:
        """Rebuilds the distribution without running its checks, which need concrete fields."""
        batch_shape, event_shape, *static = aux_data
        self = cls.__new__(cls)
        for name, value in zip(cls.data_names, params, strict=True):
            setattr(self, name, value)
        for name, value in zip(cls.aux_names, static, strict=True):
            setattr(self, name, value)
        Distribution.__init__(self, batch_shape, event_shape, validate_args=False)
        return self
