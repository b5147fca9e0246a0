"""What plugs into `numpyro.infer`: implicit guides, the loss that trains them, and `fit`."""

from implicitppl.infer._auto_implicit import AutoImplicit
from implicitppl.infer._elbo import ImplicitELBO
from implicitppl.infer._fit import FitResult, fit

__all__ = ["AutoImplicit", "FitResult", "ImplicitELBO", "fit"]
