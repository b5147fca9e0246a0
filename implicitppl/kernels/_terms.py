"""The additive terms of a kernel: f = f_1 + f_2 + ... with independent f_j.

Sums are opened wherever they stand at the top, also inside a scaling or an active dimension:
c (k1 + k2) = c k1 + c k2. Products are left alone.
"""

from implicitppl.kernels._base import ActiveDims, Kernel, Scaled, Sum


def additive_terms(kernel: Kernel) -> list[Kernel]:
    """Return the kernels whose sum is `kernel`, in the order written."""
    if isinstance(kernel, Sum):
        return [*additive_terms(kernel.first), *additive_terms(kernel.second)]
    if isinstance(kernel, Scaled):
        return [Scaled(part, kernel.scale) for part in additive_terms(kernel.kernel)]
    if isinstance(kernel, ActiveDims):
        return [ActiveDims(part, kernel.dims) for part in additive_terms(kernel.kernel)]
    return [kernel]
