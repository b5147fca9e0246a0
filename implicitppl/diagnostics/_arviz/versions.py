"""The two lines of ArviZ, 0.x (`InferenceData`) and 1.x (`DataTree`), behind two functions."""

import warnings
from collections.abc import Mapping
from typing import Any


def import_arviz() -> tuple[Any, int]:
    """The `arviz` module and its major version; imported when called, not before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.x on import
        import arviz
    return arviz, int(arviz.__version__.split(".")[0])


def container(groups: Mapping[str, Any]) -> Any:
    """`InferenceData` or `DataTree` of xarray data sets, by group name."""
    arviz, major = import_arviz()
    if major < 1:
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
