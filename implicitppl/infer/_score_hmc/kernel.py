"""`ScoreHMC`: the NumPyro kernel. It translates between NumPyro's states and the pure iteration."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro import handlers
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import constrain_fn
from numpyro.util import find_stack_level, identity, is_prng_key

import implicitppl.infer._score_hmc.kinds as kinds
from implicitppl.infer._score_hmc.chains import Chains, Options
from implicitppl.infer._score_hmc.evaluations import Evaluations, add, empty_evaluations
from implicitppl.infer._score_hmc.learners.learner import Choices, Learner
from implicitppl.infer._score_hmc.learners.states import check_force, make_states
from implicitppl.infer._score_hmc.learners.values import make_values
from implicitppl.infer._score_hmc.noise import draw, warn_if_large
from implicitppl.infer._score_hmc.problem import Model
from implicitppl.infer._score_hmc.reuse import Earlier, earlier
from implicitppl.infer._score_hmc.start import (
    Start,
    find_start,
    opaque_target,
    starting_points,
    unconstrained,
)
from implicitppl.infer._score_hmc.state import (
    ScoreHMCState,
    first_state,
    same_for_all,
    with_chain_axis,
    without_chain_axis,
)
from implicitppl.infer._score_hmc.step import step

OUTPUTS = "_black_boxes"  # where a state's `z` holds the outputs of black boxes


class ScoreHMC(MCMCKernel):
    """HMC for targets whose gradient cannot be had, with one evaluation of the target a draw.

    Trajectories follow the gradient of a surrogate: in a model with `black_box` sites every other
    part keeps its exact gradient, and the boxes' outputs are replaced by functions fitted to the
    evaluations made so far; otherwise the whole potential is fitted. The accept step evaluates the
    true target, once, at the end. The target is therefore left invariant whatever the surrogate;
    its quality decides only how often proposals are accepted.

    Warm-up finds starting points, learns the surrogate, its coordinates and step size, and compares
    kinds of moves (trajectories of three lengths, transitions of several trajectories with one
    correction, a random walk) by squared jumps for each evaluation. After it nothing changes. In
    `chain_method="vectorized"` chains learn from the evaluations of all, which is the economical
    way; in the others each chain learns alone.

    Args:
        model: NumPyro model with continuous latent sites. Without black boxes its whole potential
            is opaque; it is never differentiated.
        potential_fn: instead of a model, a potential of a PyTree, whose gradient may raise. A host
            function goes into `black_box` first. Needs `init_params` in `MCMC.run`.
        trajectory_length: number of steps times step size of all trajectories, in coordinates in
            which the target has about unit covariance. None compares three lengths.
        step_size: of the leapfrog integrator, in the same coordinates; trajectories use between a
            quarter of it and all of it, and at most 64 steps. None finds it.
        dense_mass: whether coordinates of trajectories are rotated, or only scaled.
        safe_move_prob: share of random-walk moves after warm-up. They reach every state, so it may
            not be 0.
        evaluations: of this target, from earlier runs or a design, see `Evaluations`. With black
            boxes, or a model, the data may be others: potentials are computed anew from the outputs
            kept. For a `potential_fn` one evaluation checks that it is the same.
        num_kept: how many evaluations are kept to learn from; default 1000 to 2000 by dimension.
        force: None for the gradient of a surrogate, a regression on the values of the target. A
            score estimator, such as `ip.score.Gaussian()`, `ip.score.SSGE()` or `ip.score.KEF()`:
            the force is then its score of where the chains have been, for targets without black
            boxes. It learns no faster than chains mix by random walks: 300 iterations of warm-up
            are too few for 10 correlated dimensions, 1000 barely enough. Of the states `num_kept`
            are kept, at most 500 by default, and the newer half of all is used. An estimate is not
            refused for its error, as by `ip.score.select`; `Gaussian()` is the safe choice.
        noise_correlation: of the noise of a proposal with that of the current point, for boxes with
            `noise=` (correlated pseudo-marginal); 0 draws it anew.
        init_strategy: of NumPyro, for starting points; those with an infinite potential are drawn
            again, up to 100 times.

    Raises:
        ValueError: for both or neither of `model` and `potential_fn`, a discrete latent site, a
            starting point of infinite potential or without a site given by the user, an option out
            of range, a score estimator with black boxes or `evaluations`, those of another target.
        RuntimeError: if no starting point with a finite potential is found.

    Collect `extra_fields=ScoreHMC.diagnostic_fields` for `diagnostics.surrogate_report`.

    Cost of an iteration: one evaluation, and some ten to a hundred gradients of the surrogate,
    O(M D) each for M evaluations kept; a fit in warm-up is O(M^3). There are (D + 1)(D + 2) / 2
    quadratic terms to learn: give the warm-up more evaluations than that, and start near the bulk
    (`init_to_median`) where the posterior is much narrower than the starting points.

    Fails where the target has structure finer than the evaluations can show: strongly curved
    valleys in many dimensions, modes that no chain has met. Check R-hat over chains that learned
    alone.

    Reference: Strathmann et al. (2015), Gradient-free Hamiltonian Monte Carlo with efficient kernel
    exponential families; Rasmussen (2003), Gaussian processes to speed up hybrid Monte Carlo;
    Christen, Fox (2005), Markov chain Monte Carlo using an approximation.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> import implicitppl as ip
        >>> def simulate(x):  # no gradient: NumPy
        ...     return x**2
        >>> def model():
        ...     x = numpyro.sample("x", dist.Normal(2.0, 1.0))
        ...     y = ip.models.black_box("simulator", simulate, x, out=())
        ...     numpyro.sample("y", dist.Normal(y, 0.5), obs=4.0)
        >>> mcmc = MCMC(
        ...     ip.infer.ScoreHMC(model),
        ...     num_warmup=30,
        ...     num_samples=200,
        ...     num_chains=2,
        ...     chain_method="vectorized",
        ...     progress_bar=False,
        ... )
        >>> mcmc.run(jax.random.key(0))
        >>> round(float(mcmc.get_samples()["x"].mean()), 0)
        2.0
    """

    options_stay = True  # as they were given: `LongMCMC` compares all of them
    state_layout = 2  # which fields the state has: another number refuses stored runs
    moves = kinds.MOVES
    diagnostic_fields = (
        "accept_prob",
        "diverging",
        "num_evaluations",
        "num_failures",
        "noise_variance",
        "surrogate_error",
        "integration_error",
        "surrogate_gap",
        "evaluation_distance",
        "move",
        "potential_energy",
        "step_size",
        "num_kept",
    )

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        potential_fn: Callable[[Any], Any] | None = None,
        *,
        trajectory_length: float | None = None,
        step_size: float | None = None,
        dense_mass: bool = True,
        safe_move_prob: float = 0.1,
        evaluations: Evaluations | None = None,
        num_kept: int | None = None,
        force: Any = None,
        noise_correlation: float = 0.0,
        init_strategy: Callable[..., Any] = init_to_uniform,
    ) -> None:
        if (model is None) == (potential_fn is None):
            raise ValueError("Exactly one of `model` and `potential_fn` must be given.")
        if not 0 < safe_move_prob <= 1:
            raise ValueError(
                f"`safe_move_prob` must be in (0, 1]; got {safe_move_prob}. Random walks are what "
                "reaches every state."
            )
        for name, value in (("trajectory_length", trajectory_length), ("step_size", step_size)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive and finite; got {value}.")
        if not 0 <= noise_correlation < 1:
            raise ValueError(f"`noise_correlation` must be in [0, 1); got {noise_correlation}.")
        if num_kept is not None and num_kept < 16:
            raise ValueError(f"`num_kept` must be at least 16; got {num_kept}.")
        if evaluations is not None and not isinstance(evaluations, Evaluations):
            raise ValueError(
                f"`evaluations` must be `Evaluations` or None; got {type(evaluations).__name__}."
            )
        if force is not None:
            check_force(force, evaluations)
        self._model = model
        self._potential_fn = potential_fn
        self._trajectory_length = trajectory_length
        self._step_size = step_size
        self._dense_mass = dense_mass
        self._safe_move_prob = safe_move_prob
        self._evaluations = evaluations
        self._num_kept = num_kept
        self._force = force
        self._noise_correlation = float(noise_correlation)
        self._init_strategy = init_strategy
        self._sample_fn: Any = None

    @property
    def model(self) -> Any:
        """The model, or None."""
        return self._model

    @property
    def sample_field(self) -> str:
        """The field of the state that is collected."""
        return "z"

    @property
    def default_fields(self) -> tuple[str, ...]:
        """Fields that are collected in every run."""
        return ("z", "diverging")

    def get_diagnostics_str(self, state: ScoreHMCState) -> str:
        """Text of the progress bar."""
        return (
            f"{int(jnp.sum(state.num_evaluations))} evaluations, step size "
            f"{float(jnp.mean(state.step_size)):.2e}, acc. prob="
            f"{float(jnp.mean(state.mean_accept_prob)):.2f}"
        )

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any] | None,
    ) -> ScoreHMCState:
        """Return the first state: starting points with a finite potential, and no force."""
        args, kwargs = tuple(model_args), model_kwargs or {}
        single = is_prng_key(rng_key)
        keys = rng_key[None] if single else rng_key
        next_keys, start_keys = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
        init_params = starting_points(init_params, single)
        target = opaque_target(self._model, self._potential_fn, init_params, args, kwargs)
        self._problem, self._unravel, self._num_warmup = target.problem, target.unravel, num_warmup
        start = find_start(start_keys, target, self._init_strategy, init_params, args, kwargs)
        previous = earlier(self._evaluations, self._problem, start.z, args, kwargs)
        learner = self._learner(num_warmup, start, previous)
        self._sample_fn = functools.partial(step, options=self._options(learner))
        learned = learner.begin(start, previous, self._problem)
        z = self._pack(start.z, start.evaluation.outputs)
        state = first_state(start, previous.num_tried, z, learned, next_keys)
        return without_chain_axis(state) if single else state

    def sample(
        self, state: ScoreHMCState, model_args: tuple[Any, ...], model_kwargs: Any
    ) -> ScoreHMCState:
        """Return the next state, with one evaluation of the true target for each chain."""
        single = is_prng_key(state.rng_key)
        state = with_chain_axis(state) if single else state
        keys, next_keys = jnp.swapaxes(jax.vmap(jax.random.split)(state.rng_key), 0, 1)
        i, warmup = same_for_all(state.i), self._num_warmup
        model = Model(self._problem, tuple(model_args), dict(model_kwargs or {}))
        chains = Chains(*self._unpack(state.z), state.estimate, state.learned)
        chains, report = self._sample_fn(keys, i, chains, model)
        if self._problem.is_random and self._noise_correlation == 0:
            warn_if_large(i == warmup - 1, chains.estimate.meter.variance)
        new = ScoreHMCState(
            i=state.i + 1,
            z=self._pack(chains.z, chains.outputs),
            estimate=chains.estimate,
            report=report,
            counts=state.counts.after(i, warmup, report),
            learned=chains.learned,
            rng_key=next_keys,
        )
        return without_chain_axis(new) if single else new

    def evaluate(self, rng_key: Array, points: Any, *args: Any, **kwargs: Any) -> Evaluations:
        """Return evaluations of the true target at given points, for `evaluations=`.

        Say those of a space-filling design, or draws of a guide that was fitted to a rough model.

        Args:
            rng_key: for random black boxes.
            points: values by site, on the model's own scale, with a leading axis of N points; for a
                `potential_fn` a PyTree of its arguments.
            *args: of the model.
            **kwargs: of the model.

        Raises:
            ValueError: if the points do not have the sites of the model, or not one leading axis.
        """
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(points)}
        if len(sizes) != 1 or sizes == {()}:
            raise ValueError(f"`points` must have one leading axis of points; got {sorted(sizes)}.")
        like = points if self._model is None else None
        target = opaque_target(self._model, self._potential_fn, like, args, kwargs)
        model, z = Model(target.problem, args, kwargs), points
        if self._model is not None:
            z = unconstrained(target, points, args, kwargs)
        flat = jax.vmap(lambda p: ravel_pytree(p)[0])(z)
        keys = jax.random.split(rng_key, flat.shape[0])
        noise = draw(keys, model.problem.noise)
        new = jax.jit(jax.vmap(model.evaluate))(flat, keys, noise)
        size, dimension = flat.shape
        structure = model.problem.structure(flat[0])
        return add(empty_evaluations(max(size, 2), dimension, structure, flat.dtype), flat, new)

    def postprocess_fn(self, args: tuple[Any, ...], kwargs: Any) -> Callable[[Any], Any]:
        """Return the map from `z` to constrained values; boxes keep their outputs: no host call."""
        if self._model is None:
            return identity
        model = handlers.seed(self._model, jax.random.key(0))

        def constrain(z: Any) -> Any:
            sites = {k: v for k, v in z.items() if k != OUTPUTS}
            return constrain_fn(
                model, args, kwargs or {}, sites | z.get(OUTPUTS, {}), return_deterministic=True
            )

        return constrain

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_sample_fn"] = None
        state.pop("_problem", None)
        return state

    def _learner(self, num_warmup: int, start: Start, previous: Earlier) -> Learner:
        """Return how a force is learned, from values or from states; warns if it cannot be.

        Raises:
            ValueError: for a score estimator with black boxes, or with too few states.
        """
        choices = Choices(self._safe_move_prob, self._dense_mass, self._step_size)
        num_chains, dimension = start.z.shape
        shape = (num_chains, dimension)
        learner: Learner
        if self._force is None:
            learner = make_values(num_warmup, shape, len(previous.z), self._num_kept, choices)
        elif self._problem.boxes:
            raise ValueError(
                "`force` must be None for a model with black boxes; got "
                f"{type(self._force).__name__}. The score of a history knows nothing of "
                f"{sorted(self._problem.boxes)}, whose outputs a regression learns."
            )
        else:
            learner = make_states(self._force, num_warmup, shape, self._num_kept, choices)
        if num_warmup > 0 and not learner.schedule.fits:
            warnings.warn(
                f"A warm-up of {num_warmup} iterations is too short to learn a surrogate of "
                f"{dimension} dimensions: only random walks are made. Use 100 or more.",
                stacklevel=find_stack_level(),
            )
        return learner

    def _options(self, learner: Learner) -> Options:
        """Return what does not change in a run.

        Raises:
            ValueError: for correlated noise where no black box takes any.
        """
        if self._noise_correlation > 0 and not self._problem.noise:
            raise ValueError(
                "`noise_correlation` needs a black box with `noise=`; the model has none."
            )
        random, length = self._problem.is_random, self._trajectory_length
        return Options(learner, self._noise_correlation, random, length)

    def _pack(self, z: Array, outputs: dict[str, Array]) -> Any:
        values = jax.vmap(self._unravel)(z)
        boxes = self._problem.boxes
        if not boxes:
            return values
        shaped = {k: v.reshape(v.shape[0], *boxes[k].out.shape) for k, v in outputs.items()}
        return {**values, OUTPUTS: shaped}

    def _unpack(self, z: Any) -> tuple[Array, dict[str, Array]]:
        outputs = {}
        if self._problem.boxes:
            outputs = {k: v.reshape(v.shape[0], -1) for k, v in z[OUTPUTS].items()}
            z = {k: v for k, v in z.items() if k != OUTPUTS}
        flat = jax.vmap(lambda p: ravel_pytree(p)[0])(z)
        return flat, outputs
