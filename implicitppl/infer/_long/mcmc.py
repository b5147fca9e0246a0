"""`LongMCMC`: NumPyro's MCMC in blocks of iterations, with a bar, a checkpoint and `resume`.

The chain is a Markov chain in (state, iteration), so it can be cut anywhere: a block hands its last
state to the next, and warm-up and sampling are the same iteration.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.infer import MCMC
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import find_stack_level, is_prng_key
from tqdm.auto import tqdm

from implicitppl.infer._long.blocks import Blocks, Chains, Thinning
from implicitppl.infer._long.run import Interrupts, Run, progress_text
from implicitppl.infer._long.settings import Known, settings
from implicitppl.infer._long.store import Store


class LongMCMC(MCMC):
    """`numpyro.infer.MCMC` for runs that take hours: nothing that is finished gets lost.

    Draws are those of `MCMC.run` with the same key; with "parallel" or a function as chain method
    they are so up to rounding. In addition there is a progress bar for every chain method, with
    acceptance and, where the kernel counts them, evaluations; draws go to host memory after each
    block; Ctrl-C keeps the draws of finished blocks, and so does an error; with `checkpoint` a
    killed process loses one block, and the run goes on with the same bits.

    After Ctrl-C, `run` returns with a warning. During sampling, `get_samples`, `print_summary`,
    `last_state` and `implicitppl.diagnostics.to_arviz` then work on what there is. `resume()` goes
    on in the same process; `run` with the same arguments and `checkpoint` does so in any.

    Args:
        sampler: any kernel of NumPyro, or `ScoreHMC`.
        num_warmup: iterations of warm-up.
        num_samples: iterations after it; `num_samples // thinning` draws.
        checkpoint: folder for one run. None keeps the run in memory only.
        block_size: iterations between two updates of the bar, saves, and chances to stop. Let a
            block take seconds to minutes. It does not change the draws.
        max_evaluations: of the target by all chains, warm-up included; the run stops, with a
            warning, before the block that would exceed it. For kernels that count evaluations.
        progress_bar: one bar for all chains.
        **options: `num_chains`, `thinning`, `postprocess_fn`, `chain_method`, `jit_model_args`, as
            for `MCMC`; `progress_rate` has no effect.

    Raises:
        ValueError: for a `block_size` below 1 or a checkpoint that is a file; by `run` if the
            folder holds another run.
        RuntimeError: by `get_samples` after a stop in warm-up, by `resume` before `run`.

    Cost: that of `MCMC`, and for each block a wait for the device, a copy of its draws and, with
    `checkpoint`, two small files: a millisecond or a few. Going on in a new process costs a
    compilation and the evaluations of a start.

    Fails where the model changes between a stop and its continuation in ways that the folder does
    not tell: its code, or what it reads from outside of its arguments. With other versions of
    libraries, or on another machine, the draws stay valid and the bits may differ. `run` cannot be
    called under a transformation such as `jax.vmap`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, tempfile
        >>> import implicitppl as ip
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> folder = tempfile.mkdtemp()
        >>> def runner():
        ...     return ip.infer.LongMCMC(
        ...         numpyro.infer.NUTS(model),
        ...         num_warmup=50,
        ...         num_samples=100,
        ...         checkpoint=folder,
        ...         block_size=50,
        ...         progress_bar=False,
        ...     )
        >>> mcmc = runner()
        >>> mcmc.run(jax.random.key(0), 3.0)
        >>> mcmc.get_samples()["mu"].shape
        (100,)
        >>> again = runner()  # in a new process, say; a finished run is read, not computed
        >>> again.run(jax.random.key(0), 3.0)
        >>> bool((again.get_samples()["mu"] == mcmc.get_samples()["mu"]).all())
        True
    """

    def __init__(
        self,
        sampler: MCMCKernel,
        *,
        num_warmup: int,
        num_samples: int,
        checkpoint: str | Path | None = None,
        block_size: int = 100,
        max_evaluations: int | None = None,
        progress_bar: bool = True,
        **options: Any,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"`block_size` must be at least 1; got {block_size}.")
        if max_evaluations is not None and max_evaluations < 1:
            raise ValueError(f"`max_evaluations` must be at least 1; got {max_evaluations}.")
        if checkpoint is not None and Path(checkpoint).is_file():
            raise ValueError(
                f"`checkpoint` must be a folder, which need not exist; {checkpoint} is a file."
            )
        super().__init__(
            sampler,
            num_warmup=num_warmup,
            num_samples=num_samples,
            progress_bar=False,  # NumPyro warns that it has none for some chain methods
            **options,
        )
        self.progress_bar = progress_bar
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.block_size = block_size
        self.max_evaluations = max_evaluations
        self._run: Run | None = None
        self._blocks: Blocks | None = None
        self._known: Known | None = None

    def run(
        self,
        rng_key: Array,
        *args: Any,
        extra_fields: Sequence[str] = (),
        init_params: Any = None,
        **kwargs: Any,
    ) -> None:
        """Run warm-up and sampling, or what is left of them in the checkpoint.

        Args:
            rng_key: one key, or one for each chain.
            *args: of the model.
            extra_fields: of the state, to collect; "~z.site" leaves out a site.
            init_params: unconstrained starting values, with a leading axis for several chains.
            **kwargs: of the model.

        Raises:
            ValueError: if the checkpoint holds another run, with the differences, or one that
                another version stored.
        """
        init_params = jax.tree.map(jnp.asarray, init_params)
        self._args, self._kwargs = args, kwargs
        self._states = self._states_flat = self._last_state = self._run = None
        several = self.num_chains > 1 and is_prng_key(rng_key)
        keys = jax.random.split(rng_key, self.num_chains) if several else rng_key
        self._check_starts(init_params)
        fields, removed = self._fields(extra_fields)
        state = self._warm_state(keys)
        plan = self._plan(fresh=state is None)
        store = None
        if self.checkpoint is not None:
            data = {"starting value": (init_params, state), "model argument": (args, kwargs)}
            store = Store(self.checkpoint, settings(self, rng_key, plan, fields, removed, data))
        run = Run(self._compiled(plan, fields, removed), plan, store)
        run.begin(keys, init_params, state)
        self._run = run
        self._go_on(run)

    def resume(self) -> None:
        """Go on with a run that was stopped; nothing happens if it was finished.

        Raises:
            RuntimeError: if there is none in this process.
        """
        if self._run is None:
            raise RuntimeError("There is no run to resume; call `run` first.")
        self._go_on(self._run)

    def warmup(self, rng_key: Array, *args: Any, **kwargs: Any) -> None:
        """Run the warm-up only, as in `MCMC`; an interrupt raises.

        Raises:
            ValueError: with a checkpoint, which holds one whole run.
        """
        if self.checkpoint is not None:
            raise ValueError("`checkpoint` must be None for `warmup`: `run` saves both phases.")
        super().warmup(rng_key, *args, **kwargs)
        if self._run is None or not self._run.finished:
            self._warmup_state = None
            raise KeyboardInterrupt

    def get_samples(self, group_by_chain: bool = False) -> Any:
        """Draws by site, on the host, as in `MCMC`; after a stop those that there are."""
        self._check_draws()
        return super().get_samples(group_by_chain)

    def get_extra_fields(self, group_by_chain: bool = False) -> dict[str, Any]:
        """Collected fields, as in `MCMC`."""
        self._check_draws()
        return super().get_extra_fields(group_by_chain)

    def print_summary(self, prob: float = 0.9, exclude_deterministic: bool = True) -> None:
        """Print statistics of the draws, as in `MCMC`."""
        self._check_draws()
        super().print_summary(prob, exclude_deterministic)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_run": None, "_blocks": None, "_known": None}

    def _go_on(self, run: Run) -> None:
        interrupts = Interrupts()
        with interrupts.noted():
            try:
                self._advance(run)
            except (KeyboardInterrupt, Exception) as error:
                if not interrupts.seen and not isinstance(error, KeyboardInterrupt):
                    raise
                warnings.warn(self._stopped(run), stacklevel=find_stack_level())
            finally:
                self._publish(run)

    def _advance(self, run: Run) -> None:
        plan, done, shown = run.plan, run.progress.iteration, ""
        with tqdm(total=plan.upper, initial=done, disable=not self.progress_bar) as bar:
            for first, stop in plan.blocks(done, self.block_size):
                if run.would_exceed(self.max_evaluations, stop):
                    text = f"`max_evaluations` ({self.max_evaluations}) is reached."
                    warnings.warn(f"{text} {self._stopped(run)}", stacklevel=find_stack_level())
                    break
                phase = "warmup" if first < plan.lower else "sample"
                # Drawn at once where it changes: the first block compiles, and may take minutes.
                bar.set_description(phase, refresh=phase != shown)
                shown = phase
                run.advance(stop)
                if self.progress_bar:
                    text = progress_text(run.blocks.kernel, run.progress.state)
                    bar.set_postfix_str(text, refresh=False)
                bar.update(stop - first)

    def _publish(self, run: Run) -> None:
        self._states = run.draws()
        self._last_state = run.progress.state
        self._states_flat = None
        if self._states is not None:
            self._states_flat = jax.tree.map(
                lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), self._states
            )

    def _stopped(self, run: Run) -> str:
        plan, (iteration, num_draws, _) = run.plan, run.progress
        if num_draws:
            total = plan.num_draws(plan.upper)
            return f"Stopped after {num_draws} of {total} draws of each chain. {self._remedy()}"
        return (
            f"Stopped after {iteration} of {plan.upper} iterations, {plan.lower} of them warm-up: "
            f"there are no draws yet. {self._remedy()}"
        )

    def _remedy(self) -> str:
        again = "" if self.checkpoint is None else ", and so does `run` with the same arguments"
        return f"`resume()` goes on{again}."

    def _check_draws(self) -> None:
        if self._states is None and self._run is not None and not self._run.finished:
            raise RuntimeError(self._stopped(self._run))

    def _plan(self, fresh: bool) -> Thinning:
        params = dict(self._collection_params)
        self._set_collection_params()  # `MCMC.warmup` changes them for one run
        if fresh:
            return Thinning(params["lower"], params["upper"], self.thinning)
        return Thinning(0, self.num_samples, self.thinning)

    def _warm_state(self, keys: Array) -> Any:
        """The state of `post_warmup_state` or `warmup`, with the keys of this run; or None."""
        if self._warmup_state is None:
            return None
        return self._warmup_state._replace(
            rng_key=keys[0] if self.sampler.is_ensemble_kernel else keys
        )

    def _fields(self, extra_fields: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Fields to collect, that of the samples first, and sites to leave out of those."""
        names = (self._sample_field, *self._default_fields, *extra_fields)
        mark = f"~{self._sample_field}."
        removed = dict.fromkeys(k.removeprefix(mark) for k in names if k.startswith(mark))
        return tuple(dict.fromkeys(k for k in names if not k.startswith(mark))), tuple(removed)

    def _check_starts(self, init_params: Any) -> None:
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(init_params)}
        if self.num_chains > 1 and sizes - {(self.num_chains,)}:
            raise ValueError(
                f"`init_params` must have a leading axis of `num_chains` ({self.num_chains}); "
                f"got {sorted(sizes)}."
            )

    def _compiled(
        self, plan: Thinning, fields: tuple[str, ...], removed: tuple[str, ...]
    ) -> Blocks:
        """The programs, those of the last run where they would be the same."""
        options: dict[str, Any] = {
            "chains": Chains(self.num_chains, self.chain_method),
            "num_warmup": self.num_warmup,
            "fields": fields,
            "removed": removed,
            "postprocess_fn": self.postprocess_fn,
            "thinning": self.thinning,
            "capacity": min(self.block_size, plan.upper),
            "jit_model_args": self._jit_model_args,
        }
        data = (self._args, self._kwargs)
        constants = None if self._jit_model_args and not options["chains"].mapped else data
        known = Known(self.sampler, options, constants)
        if self._blocks is None or known != self._known:
            self._blocks, self._known = Blocks(self.sampler, **options), known
        self._blocks.data = data
        return self._blocks
