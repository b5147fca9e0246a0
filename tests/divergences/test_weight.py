"""The weight of a minibatch: its limits, and the bound that it restores at a known posterior."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from implicitppl.divergences import GaussianKL, GridKL, HeldInputs, RegularizedKL, batch_weight
from implicitppl.gp import GaussianProcess
from implicitppl.infer import FunctionalELBO
from implicitppl.kernels import RBF, Linear
from implicitppl.processes import ImplicitProcess, stack

KEY = jax.random.key(0)
SIZE, BATCH, NOISE = 24, 6, 0.3


def data(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return spacing * np.arange(SIZE)[:, None], rng.standard_normal(SIZE)


def test_it_is_n_over_b_where_rows_tell_nothing_of_each_other():
    # Ten lengthscales apart the divergence of all rows is a sum over rows.
    x, y = data(10.0)
    prior = GaussianProcess(RBF())
    posterior = prior.condition(x, y, NOISE)
    weight = batch_weight(prior, posterior, x, BATCH, key=KEY, measurement=None, num_batches=300)
    mean, variance = (np.asarray(a, float) for a in posterior.moments(x))
    terms = 0.5 * (variance + mean**2 - 1) - 0.5 * np.log(variance)
    error = np.std(terms) / np.mean(terms) / np.sqrt(300 * BATCH)
    assert float(weight) == pytest.approx(SIZE / BATCH, rel=4 * error)


def test_it_is_1_where_a_batch_determines_the_function():
    # A line is known from two points, if the noise of the divergence is small.
    x, y = data(0.1)
    prior = GaussianProcess(Linear())
    posterior = prior.condition(x, y, NOISE)
    with jax.enable_x64(True):
        weight = batch_weight(
            prior, posterior, x, BATCH, key=KEY, divergence=GaussianKL(1e-5), measurement=None
        )
    assert float(weight) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "divergence",
    [GaussianKL(0.03), pytest.param(RegularizedKL(1e-5), marks=pytest.mark.exhaustive)],
    ids=str,
)
def test_losses_of_batches_have_the_bound_at_all_rows_as_their_mean(divergence):
    # At the posterior that the weight was made for; with weight 1 the bound is missed. The points
    # lie among the data, where they add to the divergence of a batch.
    x, y = data(0.5)
    held = HeldInputs(np.array([[1.2], [4.3], [7.7], [10.1]]))
    prior = GaussianProcess(RBF())
    posterior = prior.condition(x, y, NOISE)
    options = {"measurement": held, "divergence": divergence}
    weight = float(batch_weight(prior, posterior, x, BATCH, key=KEY, num_batches=600, **options))

    def losses(batch: int, weight: float, num_particles: int, num: int) -> np.ndarray:
        def model():
            with numpyro.plate("rows", SIZE, subsample_size=batch) as rows:
                points, outputs = jnp.asarray(x)[rows], jnp.asarray(y)[rows]
            f = numpyro.sample("f", prior(points))
            with numpyro.plate("rows", SIZE, subsample_size=batch):
                numpyro.sample("y", dist.Normal(f, NOISE), obs=outputs)

        def guide():
            with numpyro.plate("rows", SIZE, subsample_size=batch) as rows:
                points = jnp.asarray(x)[rows]
            numpyro.sample("f", posterior(points))

        loss = FunctionalELBO(weight=weight, num_particles=num_particles, **options)
        keys = jax.random.split(jax.random.key(3), num)
        return np.asarray(jax.lax.map(lambda key: loss.loss(key, {}, model, guide), keys))

    whole = losses(SIZE, 1.0, 2000, 1)[0]
    right, wrong = losses(BATCH, weight, 20, 2500), losses(BATCH, 1.0, 20, 2500)
    assert abs(right.mean() - whole) < 4 * right.std() / 50
    assert abs(wrong.mean() - whole) > 8 * wrong.std() / 50


@pytest.mark.parametrize("divergence", [GaussianKL(0.6), RegularizedKL(1e-2)], ids=str)
def test_it_is_the_ratio_of_the_divergences_that_it_is_given(divergence):
    # Noise as large as this changes the ratio, and so do points among the data.
    x, y = data(0.5)
    held = np.array([[1.2], [4.3], [7.7], [10.1]])
    prior = GaussianProcess(RBF())
    posterior = prior.condition(x, y, NOISE)

    def kl(rows: np.ndarray) -> float:
        at = np.concatenate([rows, held])
        mean, inner, outer = (
            np.asarray(a, float)
            for a in (posterior.mean_at(at), posterior.covariance(at), prior.covariance(at))
        )
        noise = divergence.noise**2 if isinstance(divergence, GaussianKL) else 1e-2 * len(at)
        inner, outer = inner + noise * np.eye(len(at)), outer + noise * np.eye(len(at))
        square = np.trace(np.linalg.solve(outer, inner)) + mean @ np.linalg.solve(outer, mean)
        return 0.5 * (square - len(at) + np.linalg.slogdet(outer)[1] - np.linalg.slogdet(inner)[1])

    rng = np.random.default_rng(2)
    batches = [kl(rng.permutation(x)[:BATCH]) for _ in range(300)]
    options = {"measurement": HeldInputs(held), "divergence": divergence}
    weight = batch_weight(prior, posterior, x, BATCH, key=KEY, num_batches=300, **options)
    error = 2**0.5 * np.std(batches) / np.mean(batches) / 300**0.5
    assert float(weight) == pytest.approx(kl(x) / np.mean(batches), rel=4 * error)
    assert 4 * error < 0.1


def test_points_may_come_from_any_object_that_is_called():
    # An object that is equal by content has no hash, so a program cannot be kept by it.
    @dataclass
    class Beside:
        distance: float

        def __call__(self, key, x):
            return x[:3] + self.distance

    x, y = data(0.5)
    prior = GaussianProcess(RBF())
    posterior = prior.condition(x, y, NOISE)

    def weight(measurement):
        found = batch_weight(prior, posterior, x, BATCH, key=KEY, measurement=measurement)
        return float(found)

    near = weight(Beside(0.2))
    assert near == pytest.approx(weight(lambda key, x: x[:3] + 0.2), rel=1e-6)
    assert near != pytest.approx(weight(Beside(9.0)), rel=1e-2)  # the points are those given


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 25}, "`batch_size` must be between 1 and N = 24; got 25"),
        ({"batch_size": 0}, "`batch_size` must be between 1 and N"),
        ({"divergence": GridKL()}, "`divergence` must be .* got GridKL"),
        ({"num_batches": 0}, "`num_batches` must be positive"),
        (
            {"prior": ImplicitProcess(lambda key, x: x[:, 0])},
            "`prior` must be a Gaussian process",
        ),
        ({"x": jnp.array([jnp.nan])}, "`x` must be finite"),
        ({"posterior": GaussianProcess(RBF())}, r"must differ from `prior`.*condition\(x, y"),
        ({"prior": stack([GaussianProcess(RBF())] * 2)}, "as many outputs; got 2 and 1"),
    ],
    ids=["too many", "none", "divergence", "batches", "implicit", "nan", "prior", "outputs"],
)
def test_what_it_cannot_use_is_refused(changes, message):
    x, y = data(0.5)
    prior = GaussianProcess(RBF())
    arguments = {"prior": prior, "posterior": prior.condition(x, y, NOISE), "x": x}
    with pytest.raises(ValueError, match=message):
        batch_weight(**(arguments | {"batch_size": BATCH, "key": KEY} | changes))
