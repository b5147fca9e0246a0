"""A prior over kernels: every parameter of a kernel becomes a NumPyro site.

The parameters are those that the kernel declares (`implicitppl.kernels.parameters`); their sites
are named `<name>/<parameter>`, such as "k/first.lengthscale". Default priors go by kind, and are
centred on the kernel's present value (v), so a kernel that was set from data brings its scales:

    lengthscale, variance, other positive numbers       LogNormal(log v, 1)
    period, positive frequency                          LogNormal(log v, 1/4)
    real frequency                                      Normal(v, |v|/4), Normal(0, 1) for v = 0
    mean, other real numbers                            Normal(v, 1)
    weight of a non-negative layer (o, i)               Exponential(i)
    bias of one                                         Exponential(10)

Independent exponential weights are a uniform Dirichlet row times a gamma scale: rows that use one
input only are as likely as any other, and the mean of a row's sum is 1, as in the published
initialisation. Periods and frequencies are narrow: their likelihood has a mode at every multiple.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.contrib.module import random_eqx_module
from numpyro.distributions import Distribution, Exponential, LogNormal, Normal

from implicitppl.kernels import Kernel, parameters
from implicitppl.kernels._parameters import Parameter, as_arrays

K = TypeVar("K", bound=Kernel)
Prior = Mapping[str, Any]  # a distribution, or a number that is held

WIDTH = 1.0
"""Standard deviation of the log of a positive parameter: 95% lie within a factor of 7."""
NARROW = 0.25
"""The same for periods and frequencies: 95% lie within a factor of 1.6."""
BIAS_RATE = 10.0
"""How many times smaller than a weight a bias is expected to be."""


def kernel_prior(parameter: Parameter) -> Distribution:
    """Return the default prior of a parameter, one number for each of its entries.

    Example:
        >>> from implicitppl.distributions._kernel_prior import kernel_prior
        >>> from implicitppl.kernels import RBF, parameters
        >>> type(kernel_prior(parameters(RBF(2.0))["lengthscale"])).__name__
        'LogNormal'
    """
    value = parameter.value
    if parameter.kind in ("weight", "bias") and parameter.is_positive:
        inputs = value.shape[-1] if parameter.kind == "weight" else 1
        rate = inputs * (1.0 if parameter.kind == "weight" else BIAS_RATE)
        return Exponential(jnp.full(value.shape, rate, value.dtype))
    narrow = parameter.kind in ("period", "frequency")
    if parameter.is_positive:
        return LogNormal(jnp.log(value), NARROW if narrow else WIDTH)
    scale = jnp.where(value == 0, 1, NARROW * jnp.abs(value)) if narrow else jnp.ones_like(value)
    return Normal(value, scale)


def random_kernel(
    name: str,
    kernel: K,
    prior: Prior | Callable[[str, Parameter], Distribution | ArrayLike] | None = None,
    *,
    scope_divider: str = "/",
) -> K:
    """Sample the parameters of a kernel in a NumPyro model, and return the kernel with them.

    Args:
        name: of the kernel; its sites are `<name>/<parameter>`.
        kernel: any kernel; its values are the centres of the default priors.
        prior: by the names of `implicitppl.kernels.parameters`: a distribution (that broadcasts to
            the parameter's shape), or a number or array at which the parameter is held fixed.
            Names left out have the default prior. Or a function of name and `Parameter` for all.
        scope_divider: what stands between the name and the parameter.

    Returns:
        A kernel of equal structure. The sites are ordinary ones: SVI with any guide, NUTS,
        `Predictive`, and `numpyro.handlers` treat them as such.

    Raises:
        ValueError: if `kernel` is none, `prior` has a name that the kernel has not or a value that
            is neither, or a kernel holds numbers that it does not declare.

    The module is registered by `numpyro.contrib.module.random_eqx_module`.

    Example:
        >>> import numpyro
        >>> from jax import random
        >>> from numpyro.distributions import HalfNormal
        >>> from implicitppl.distributions import random_kernel
        >>> from implicitppl.kernels import RBF
        >>> def model():
        ...     return random_kernel("k", RBF(), {"variance": HalfNormal(), "lengthscale": 2.0})
        >>> trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
        >>> [site for site in trace if trace[site]["type"] == "sample"]
        ['k/variance']
    """
    if not isinstance(kernel, Kernel):
        raise ValueError(f"`kernel` must be a kernel of `implicitppl.kernels`; got {kernel!r}.")
    arrays = as_arrays(kernel)
    known = parameters(arrays)
    choices = _choices(known, prior)
    fixed = {key: value for key, value in choices.items() if not isinstance(value, Distribution)}
    held = _with_values(arrays, fixed)
    is_random = _mask(arrays, [key not in fixed for key in known])
    random, constant = eqx.partition(held, is_random)

    def chosen(parameter: str, shape: tuple[int, ...]) -> Distribution:
        drawn = choices[parameter]
        assert isinstance(drawn, Distribution)
        return drawn

    if len(fixed) == len(known):
        return held
    return eqx.combine(random_eqx_module(name, random, chosen, scope_divider), constant)


def kernel_at(kernel: K, values: Mapping[str, ArrayLike], name: str = "") -> K:
    """Return the kernel with the values of its sites, such as one draw of a posterior.

    Args:
        kernel: the kernel that was given to `random_kernel`.
        values: by site, "<name>/<parameter>" if `name` is given, else by parameter; other sites
            are ignored, and parameters without a value keep their own.
        name: of the kernel.

    Returns:
        A kernel of equal structure. Under `jax.vmap` over a dict of draws: a batch of kernels.

    Raises:
        ValueError: if no value belongs to the kernel.

    Example:
        >>> from implicitppl.distributions import kernel_at
        >>> from implicitppl.kernels import RBF
        >>> float(kernel_at(RBF(), {"k/lengthscale": 3.0, "sigma": 1.0}, "k").lengthscale)
        3.0
    """
    arrays = as_arrays(kernel)
    known = parameters(arrays)
    prefix = f"{name}/" if name else ""
    mine = {key: values[prefix + key] for key in known if prefix + key in values}
    if not mine:
        raise ValueError(
            f"`values` has none of the kernel's parameters {sorted(known)} under {prefix!r}; "
            f"got {sorted(values)}."
        )
    return _with_values(arrays, mine)


def _choices(
    known: Mapping[str, Parameter],
    prior: Prior | Callable[[str, Parameter], Distribution | ArrayLike] | None,
) -> dict[str, Distribution | ArrayLike]:
    if callable(prior):
        return {key: prior(key, parameter) for key, parameter in known.items()}
    given = dict(prior or {})
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"`prior` names {unknown}; the kernel's parameters are {sorted(known)}.")
    for key, value in given.items():
        if not isinstance(value, Distribution) and not eqx.is_array_like(value):
            raise ValueError(
                f"`prior` must give a distribution or a number for {key!r}; got {value!r}."
            )
    return {key: given.get(key, kernel_prior(parameter)) for key, parameter in known.items()}


def _with_values(kernel: K, values: Mapping[str, ArrayLike]) -> K:
    """Return the kernel with some parameters replaced, each broadcast to its shape."""

    def replaced(path: tuple[Any, ...], leaf: Any) -> Any:
        key = jax.tree_util.keystr(path).lstrip(".")
        if key not in values:
            return leaf
        return jnp.broadcast_to(jnp.asarray(values[key], leaf.dtype), np.shape(leaf))

    return jax.tree_util.tree_map_with_path(replaced, kernel)


def _mask(kernel: K, flags: list[bool]) -> K:
    remaining = iter(flags)

    def flag(leaf: Any) -> bool:
        return eqx.is_inexact_array(leaf) and next(remaining)

    return jax.tree.map(flag, kernel)
