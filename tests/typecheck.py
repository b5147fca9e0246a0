"""The type checker of the import hook: beartype, without the one hint that it cannot check.

beartype knows `typing.Self` only where it decorates the class; the hook decorates methods.
"""

from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype

typechecked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: Any})))
