"""What a long MCMC run computes: the iterations of one block, compiled once for all blocks.

One program does warm-up and sampling. Its bounds are arguments, so a shorter block needs no second
compilation, and the size of the blocks does not change a bit of the draws. As in NumPyro's `MCMC`,
iteration i (from 0, warm-up included) belongs to draw (i - start) // thinning, its last one counts,
and

    start = lower + (upper - lower) % thinning.

Shapes: between blocks a state is stacked over chains, except where there is one chain or the kernel
moves all of them; kept values are `(chain, draw, ...)` on the host.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.util import nested_attrgetter


class Thinning(NamedTuple):
    """Which iterations are kept.

    Attributes:
        lower: iterations before the first that may be kept.
        upper: all iterations.
        thinning: iterations for each draw.
    """

    lower: int
    upper: int
    thinning: int

    @property
    def start(self) -> int:
        """The first iteration of the first draw."""
        return self.lower + (self.upper - self.lower) % self.thinning

    def num_draws(self, iteration: int) -> int:
        """Draws that are finished before this iteration."""
        return max(iteration - self.start, 0) // self.thinning

    def blocks(self, iteration: int, block_size: int) -> Iterator[tuple[int, int]]:
        """Bounds of the blocks that are left; none lies in both phases."""
        while iteration < self.upper:
            phase_end = self.lower if iteration < self.lower else self.upper
            stop = min(iteration + block_size, phase_end)
            yield iteration, stop
            iteration = stop


class Chains(NamedTuple):
    """How chains are run, as given to `numpyro.infer.MCMC`."""

    num: int
    method: str | Callable[..., Any]

    @property
    def together(self) -> bool:
        """Whether the kernel moves all chains, or there is one."""
        return self.num == 1 or self.method == "vectorized"

    @property
    def mapped(self) -> bool:
        """Whether a transformation of JAX runs the chains."""
        return not self.together and self.method != "sequential"

    def map(self, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`fn` of one chain, for all of them."""
        return jax.pmap(fn) if self.method == "parallel" else self.method(fn)  # type: ignore[operator]


class Blocks:
    """Starts chains and runs blocks of iterations.

    Args:
        kernel: of NumPyro; it gets set up by the first start.
        chains: how many, and how they are run.
        num_warmup: iterations in which the kernel adapts.
        fields: of the state, to collect; the first is that of the samples.
        removed: sites to leave out of the samples.
        postprocess_fn: instead of the kernel's.
        thinning: iterations for each draw.
        capacity: the most iterations of a block.
        jit_model_args: whether the model's arguments are arguments of the program; otherwise they
            are constants in it, as in NumPyro, where the same sums then give the same bits.

    Attributes:
        data: arguments and keyword arguments of the model; to be set before anything is called.
    """

    data: tuple[tuple[Any, ...], dict[str, Any]]

    def __init__(
        self,
        kernel: Any,
        chains: Chains,
        num_warmup: int,
        fields: tuple[str, ...],
        removed: tuple[str, ...],
        postprocess_fn: Callable[..., Any] | None,
        thinning: int,
        capacity: int,
        jit_model_args: bool,
    ) -> None:
        # A kernel that was set up for a batch of chains cannot be set up again; copies can.
        used = getattr(kernel, "_sample_fn", None) is not None
        self.kernel = copy.copy(kernel) if used else kernel
        self.chains = chains
        self._num_warmup = num_warmup
        self._fields, self._removed = fields, removed
        self._postprocess_fn = postprocess_fn
        self._thinning = thinning
        self._capacity = capacity // thinning + 2  # draws that a block may touch
        self._constants = not jit_model_args or chains.mapped
        self._ready = False
        self._program = self._compiled()

    def start(self, keys: Array, init_params: Any) -> Any:
        """First state of all chains, from one key for each chain."""
        inits = (keys, init_params)
        if self.chains.mapped:
            self.set_up_once(keys, init_params)
            # what is traced must not stay in the kernel of the program
            init = functools.partial(self._init, copy.copy(self.kernel))
            return self._strong(self.chains.map(init)(inits))
        first = self._set_up(keys, init_params)
        if self.chains.together:
            return self._strong(first)
        others = [self._init(copy.copy(self.kernel), _at(inits, c)) for c in self._numbers(1)]
        return self._strong(_stack([first, *others]))

    def set_up_once(self, keys: Array, init_params: Any) -> None:
        """Set the kernel of the program up, at the cost of a start, unless that was done."""
        if not self._ready:
            self._set_up(keys, init_params)

    def abstract(self, keys: Array, init_params: Any) -> tuple[Any, Any]:
        """Shapes of the state and of one draw of one chain; nothing is computed."""
        kernel = copy.copy(self.kernel)

        def both(inits: Any) -> tuple[Any, Any]:
            state = self._init(kernel, inits)
            return state, self._collector(kernel, *self.data)(state)

        state, draw = jax.eval_shape(both, self._first(keys, init_params))
        if self.chains.together:
            return state, draw
        shape = (self.chains.num,)
        return jax.tree.map(lambda x: x.update(shape=shape + x.shape), state), draw

    def run(self, state: Any, plan: Thinning, first: int, stop: int) -> tuple[Any, Any]:
        """The state after iterations `first` to `stop`, and what they kept, on the host."""
        bounds = jnp.array([first, stop, plan.start], jnp.int32)
        num = plan.num_draws(stop) - plan.num_draws(first)
        data = None if self._constants else self.data
        if self.chains.together or self.chains.mapped:
            state, kept = self._program(state, bounds, data)
        else:
            parts = [self._program(state, bounds, data, c) for c in self._numbers(0)]
            state = _stack([part[0] for part in parts])
            kept = _stack([part[1] for part in parts]) if num else None
        jax.block_until_ready(state)
        return state, jax.tree.map(lambda x: self._by_chain(x, num), kept) if num else None

    def _set_up(self, keys: Array, init_params: Any) -> Any:
        """First state of one chain, or of all where they are together, from a kernel made ready."""
        kernel = copy.copy(self.kernel) if self._ready else self.kernel
        state = self._init(kernel, self._first(keys, init_params))
        self._ready = True
        return state

    def _init(self, kernel: Any, inits: Any) -> Any:
        keys, params = inits
        args, kwargs = self.data
        return kernel.init(keys, self._num_warmup, params, model_args=args, model_kwargs=kwargs)

    def _first(self, keys: Array, init_params: Any) -> Any:
        inits = (keys, init_params)
        return inits if self.chains.together else _at(inits, 0)

    def _numbers(self, first: int) -> list[np.int32]:
        return [np.int32(c) for c in range(first, self.chains.num)]

    def _by_chain(self, x: Array, num: int) -> np.ndarray:
        """The first `num` kept values, (chain, num, ...)."""
        if self.chains.num == 1:
            return np.asarray(x)[None, :num]
        if self.chains.together:
            return np.swapaxes(np.asarray(x)[:num], 0, 1)
        return np.asarray(x)[:, :num]

    def _strong(self, state: Any) -> Any:
        """The state with the types that it has after an iteration: one program for all blocks."""
        state = jax.tree.map(jnp.asarray, state)
        weak = [x for x in jax.tree.leaves(state) if getattr(x, "weak_type", False)]
        like = state
        if any(jnp.issubdtype(x.dtype, jnp.floating) for x in weak) and not self.chains.mapped:
            state_of_one = state if self.chains.together else _at(state, 0)
            like = jax.eval_shape(lambda s: self.kernel.sample(s, *self.data), state_of_one)
        return jax.tree.map(lambda x, y: _strong(x, y.dtype), state, like)

    def _collector(self, kernel: Any, args: Any, kwargs: Any) -> Callable[[Any], dict[str, Any]]:
        """The function from a state to what is kept of it, by field; samples are constrained."""
        constrain = self._postprocess_fn or kernel.postprocess_fn(args, kwargs)
        if self.chains.num > 1 and self.chains.together:
            constrain = jax.vmap(constrain, axis_size=self.chains.num)

        def collect(state: Any) -> dict[str, Any]:
            values = [nested_attrgetter(field)(state) for field in self._fields]
            samples = constrain(values[0])
            if self._removed:
                samples = {k: v for k, v in samples.items() if k not in self._removed}
            kept = dict(zip(self._fields, [samples, *values[1:]], strict=True))
            return jax.tree.map(lambda x: raw(jnp.asarray(x)), kept)

        return collect

    def _block(self, state: Any, bounds: Array, data: Any) -> tuple[Any, Any]:
        args, kwargs = self.data if data is None else data
        collect = self._collector(self.kernel, args, kwargs)
        first, stop, start = bounds
        done = jnp.maximum(first - start, 0) // self._thinning
        room = jax.tree.map(
            lambda x: jnp.zeros((self._capacity, *x.shape), x.dtype), jax.eval_shape(collect, state)
        )

        def body(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, kept = carry
            state = self.kernel.sample(state, args, kwargs)
            slot = jnp.where(i < start, self._capacity, (i - start) // self._thinning - done)
            new = collect(state)
            return state, jax.tree.map(lambda k, x: k.at[slot].set(x, mode="drop"), kept, new)

        state, kept = jax.lax.fori_loop(first, stop, body, (state, room))
        return jax.tree.map(_strong, state), kept

    def _compiled(self) -> Callable[..., tuple[Any, Any]]:
        if self.chains.together:
            return jax.jit(self._block)
        if self.chains.method == "sequential":
            return jax.jit(lambda state, bounds, data, c: self._block(_at(state, c), bounds, data))
        if self.chains.method == "parallel":
            return jax.pmap(self._block, in_axes=(0, None, None))
        return jax.jit(
            lambda state, bounds, data: self.chains.map(lambda s: self._block(s, bounds, data))(
                state
            )
        )


def raw(x: Any) -> Any:
    """An array, or the numbers of an array of keys."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _strong(x: Any, dtype: Any = None) -> Any:
    """An array whose type does not yield to others; weak ones take the type, if one is given."""
    return x.astype(dtype or x.dtype) if getattr(x, "weak_type", False) else x


def _at(tree: Any, c: Any) -> Any:
    return jax.tree.map(lambda x: x[c], tree)


@jax.jit
def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)
