"""Type-II maximum likelihood: it finds optima, keeps the best step, and compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from implicitppl.gp import GaussianProcess, best_fit, fit
from implicitppl.kernels import RBF, ArcCosine, Kernel, Periodic, positive

X = np.linspace(-3, 3, 30)
Y = np.sin(2 * X) + 0.2 * np.random.default_rng(0).normal(size=30)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def optimum():
    """Minus log evidence and log (lengthscale, variance, noise) by SciPy, from another start."""

    def loss(raw):
        length, variance, noise = jnp.exp(raw)
        return -GaussianProcess(RBF(length, variance)).log_evidence(X, Y, noise)

    with jax.enable_x64(True):
        slope = jax.jit(jax.value_and_grad(loss))
        found = minimize(lambda raw: [np.asarray(v) for v in slope(raw)], np.zeros(3), jac=True)
    return found


def test_finds_the_optimum_of_scipy(optimum):
    found = fit(GaussianProcess(RBF(3.0, 0.2)), X, Y, 1.0, num_steps=400)
    assert float(found.log_evidence) == pytest.approx(-optimum.fun, abs=1e-3)
    kernel = found.process.kernel
    ours = np.log([kernel.lengthscale, kernel.variance, found.noise_scale])
    np.testing.assert_allclose(ours, optimum.x, atol=0.03)
    again = found.process.log_evidence(X, Y, found.noise_scale)
    assert float(again) == pytest.approx(float(found.log_evidence), rel=1e-12)


def test_second_order_optimisers_of_optax_work(optimum):
    found = fit(GaussianProcess(RBF(3.0, 0.2)), X, Y, 1.0, num_steps=40, optim=optax.lbfgs())
    assert float(found.log_evidence) == pytest.approx(-optimum.fun, abs=1e-3)


def test_what_is_fixed_stays():
    start = GaussianProcess(RBF(0.5, 1.3), 0.7)
    found = fit(start, X, Y, 0.25, num_steps=20, fixed=["kernel.variance", "noise_scale"])
    assert float(found.process.kernel.variance) == pytest.approx(1.3, rel=1e-14)
    assert float(found.noise_scale) == pytest.approx(0.25, rel=1e-14)
    assert float(found.process.kernel.lengthscale) != 0.5
    assert float(found.process.prior_mean.value) != 0.7


def test_units_do_not_matter():
    """Data in other units give the same path: parameters move by their logarithms."""
    # As many steps as in the test of the optimum: one program serves both.
    near = fit(GaussianProcess(RBF(0.5)), X, Y, 0.3, num_steps=400)
    far = fit(GaussianProcess(RBF(500.0, 1e4)), 1000 * X, 100 * Y, 30.0, num_steps=400)
    shift = 30 * np.log(100)
    np.testing.assert_allclose(shift - far.losses, -near.losses, rtol=1e-6)


def test_a_fit_never_ends_worse_than_it_began():
    """Steps far too long: the best point is one of the middle, and it is what is returned."""
    found = fit(GaussianProcess(RBF()), X, Y, 0.2, num_steps=15, optim=optax.adam(1.0))
    best = int(jnp.argmin(found.losses))
    assert 0 < best < 14 and float(found.losses[-1]) > float(found.losses[best]) + 0.1
    assert float(found.log_evidence) >= -float(found.losses[best])
    again = found.process.log_evidence(X, Y, found.noise_scale)
    assert float(again) == pytest.approx(float(found.log_evidence), rel=1e-10)


class Fragile(Kernel):
    """An RBF that is NaN below a lengthscale of 1."""

    lengthscale: float = positive(1.1, kind="lengthscale")

    def __call__(self, x, y):
        value = jnp.exp(-0.5 * jnp.sum((x - y) ** 2) / self.lengthscale**2)
        return jnp.where(self.lengthscale < 1, jnp.nan, value)


def test_points_that_are_not_finite_are_left_and_counted():
    found = fit(GaussianProcess(Fragile()), X, Y, 0.2, num_steps=20)
    assert int(found.num_skipped) > 0
    assert jnp.isfinite(found.log_evidence) and float(found.process.kernel.lengthscale) >= 1


def test_a_second_fit_of_equal_shape_compiles_nothing():
    traces = 0

    class Counted(Kernel):
        lengthscale: float = positive(1.0, kind="lengthscale")

        def __call__(self, x, y):
            nonlocal traces
            traces += 1
            return jnp.exp(-jnp.sum((x - y) ** 2) / self.lengthscale)

    fit(GaussianProcess(Counted(1.0)), X, Y, 0.2, num_steps=3)
    before = traces
    fit(GaussianProcess(Counted(2.0)), X + 1, 2 * Y, 0.5, num_steps=3)
    assert before > 0 and traces == before


def test_ill_conditioned_data_train_without_nan():
    """Six levels of the output, repeated rows, a constant column: as in the wine data."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(False):
        x = np.repeat(rng.integers(0, 3, size=(40, 3)), 2, axis=0).astype(np.float32)
        x[:, 2] = 5.0
        y = rng.integers(3, 9, size=80).astype(np.float32)
        start = GaussianProcess(RBF(jnp.ones(3)), 5.0)
        found = fit(start, x, y, 0.1, num_steps=150)
        assert int(found.num_skipped) == 0
        assert jnp.all(jnp.isfinite(found.losses))
        values = found.process.condition(x, y, found.noise_scale)(x)
        assert jnp.all(jnp.isfinite(values.mean)) and jnp.all(jnp.isfinite(values.variance))


BAD = {
    "a name": (lambda: fit(GaussianProcess(RBF()), X, Y, fixed=["scale"]), r"`fixed` names \['sc"),
    "a kernel": (lambda: fit(RBF(), X, Y), "must be a `GaussianProcess` or another model"),
    "a string": (
        lambda: fit(GaussianProcess(RBF()), X, Y, fixed="kernel.variance"),
        "must be a collection of names",
    ),
    "a rate": (
        lambda: fit(GaussianProcess(RBF()), X, Y, learning_rate=-1.0),
        "`learning_rate` must be positive",
    ),
    "steps": (lambda: fit(GaussianProcess(RBF()), X, Y, num_steps=0), "must be at least 1; got 0"),
    "nan": (lambda: fit(GaussianProcess(RBF()), X, Y * np.nan), "`y` must be finite; 30 of 30"),
    "a start": (
        lambda: fit(GaussianProcess(Fragile(0.5)), X, Y, num_steps=2),
        "not finite at the starting point",
    ),
    "no noise to learn": (
        lambda: fit(GaussianProcess(RBF()), X, Y, 0.0, num_steps=2),
        "`noise_scale` must be positive; got 0.0",
    ),
    "a posterior": (
        lambda: fit(GaussianProcess(RBF()).condition(X, Y, 0.1), X, Y),
        "fit a process before it is observed",
    ),
    "a period": (lambda: GaussianProcess(Periodic(1.0, period=0.0)), "`period` must be positive"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_parameter_that_is_zero_stays_zero_and_the_others_learn():
    found = fit(GaussianProcess(ArcCosine(1.0, 1.0, 0.0) + RBF()), X, Y, 0.3, num_steps=30)
    assert int(found.num_skipped) == 0
    assert float(found.process.kernel.first.bias_variance) == 0
    assert float(found.log_evidence) > 1 - float(found.losses[0])


def test_the_best_of_several_starts_is_kept():
    # log p(y) has a maximum for each of a period's divisors and multiples: a start finds the next.
    y = np.sin(2 * X)
    starts = [GaussianProcess(Periodic(period=period)) for period in (0.5, 2.9, 0.9)]
    found, evidence = best_fit(starts, X, y, num_steps=60)
    alone = [float(fit(start, X, y, num_steps=60).log_evidence) for start in starts]
    np.testing.assert_array_equal(evidence, alone)
    assert np.argmax(evidence) == 1 and evidence[1] > max(evidence[0], evidence[2]) + 10
    assert float(found.log_evidence) == evidence[1]
    assert float(found.process.kernel.period) == pytest.approx(np.pi, abs=0.05)
    with pytest.raises(ValueError, match="`starts` must hold at least one"):
        best_fit([], X, y)
