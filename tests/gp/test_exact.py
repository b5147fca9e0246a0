"""Gaussian processes against dense NumPy, against themselves, and inside NumPyro."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import HalfNormal, Normal, constraints
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

from implicitppl.gp import GaussianProcess
from implicitppl.kernels import RBF, Kernel, Matern32, Matern52, positive
from implicitppl.kernels._terms import additive_terms
from implicitppl.processes import Process, WhitenReparam

NOISE = 0.2


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(12, 2))
    return jnp.asarray(x), jnp.asarray(np.sin(2 * x[:, 0]) + x[:, 1] + rng.normal(size=12) / 5)


@pytest.fixture
def queries():
    return jnp.asarray(np.random.default_rng(1).uniform(-3, 3, size=(5, 2)))


@pytest.fixture
def prior():
    return GaussianProcess(RBF(jnp.array([0.8, 1.5]), 1.3) + 0.5 * Matern32(0.7), 0.4)


def test_posterior_and_evidence_are_those_of_scikit_learn(data, queries):
    x, y = data
    kernel = sk.ConstantKernel(1.3) * sk.RBF([0.8, 1.5])
    peer = GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=None).fit(x, y)
    mean, covariance = peer.predict(queries, return_cov=True)
    prior = GaussianProcess(RBF(jnp.array([0.8, 1.5]), 1.3))
    values = prior.condition(x, y, NOISE)(queries)
    np.testing.assert_allclose(values.mean, mean, atol=1e-10)
    np.testing.assert_allclose(values.covariance_matrix, covariance, atol=1e-10)
    np.testing.assert_allclose(values.variance, np.diag(covariance), atol=1e-10)
    evidence = peer.log_marginal_likelihood_value_
    assert float(prior.log_evidence(x, y, NOISE)) == pytest.approx(evidence, rel=1e-10)


def test_log_density_is_that_of_numpyro_for_any_leading_shape(prior, data):
    x, _ = data
    scale = np.linspace(0.1, 0.5, 12)
    mean, gram = jax.jit(lambda x: (prior.mean_at(x), prior.kernel.gram(x)))(x)
    dense = multivariate_normal(mean, gram + np.diag(scale**2))
    values = prior(x, scale)

    @partial(jax.jit, static_argnums=0)
    def drawn(shape):
        y = values.sample(jax.random.key(0), shape)
        return y, values.log_prob(y)

    for shape in [(), (3,), (2, 3)]:
        y, log_prob = drawn(shape)
        assert y.shape == (*shape, 12) and log_prob.shape == shape
        np.testing.assert_allclose(log_prob, dense.logpdf(y), rtol=1e-10)


def test_draws_have_the_stated_moments_and_not_others(prior, queries):
    values = prior(queries, NOISE)
    num = 20_000
    draws = values.sample(jax.random.key(1), (num,))
    covariance = np.asarray(values.covariance_matrix)

    def distances(covariance):
        """Deviations of all second moments in their standard errors."""
        spread = np.diag(covariance)
        errors = np.sqrt((covariance**2 + np.outer(spread, spread)) / num)
        return np.abs(np.cov(draws.T) - covariance) / errors

    means = np.abs(draws.mean(0) - values.mean) / np.sqrt(np.diag(covariance) / num)
    assert means.max() < 4 and distances(covariance).max() < 4
    assert distances(1.1 * covariance).max() > 4


def test_conditioning_in_two_steps_is_conditioning_at_once(prior, data, queries):
    x, y = data
    observed = np.arange(12) % 4 != 1
    scale = np.linspace(0.1, 0.4, 12)

    @jax.jit
    def both(x, y, mask):
        whole = prior.condition(x, y, scale, observed=mask)
        first = None if mask is None else mask[:7]
        rest = None if mask is None else mask[7:]
        steps = prior.condition(x[:7], y[:7], scale[:7], observed=first)
        steps = steps.condition(x[7:], y[7:], scale[7:], observed=rest)
        return [(*p.moments(queries), p.covariance(queries, x)) for p in (whole, steps)]

    for mask in (None, observed):
        for a, b in zip(*both(x, y, mask), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_missing_outputs_are_as_if_they_were_not_there(prior, data, queries):
    x, y = data
    observed = np.arange(12) % 3 > 0
    noisy = np.where(observed, y, np.nan)

    @jax.jit
    def both(queries):
        masked = prior.condition(x, noisy, NOISE, observed=observed)
        kept = prior.condition(x[observed], y[observed], NOISE)
        evidence = prior(x, NOISE, observed=observed).log_prob(y)
        expected = prior.log_evidence(x[observed], y[observed], NOISE)
        return masked.moments(queries), kept.moments(queries), evidence, expected

    masked, kept, evidence, expected = both(queries)
    for a, b in zip(masked, kept, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert float(evidence) == pytest.approx(float(expected), rel=1e-12)
    slope = jax.jit(jax.grad(lambda s: prior.log_evidence(x, noisy, s, observed=observed)))(NOISE)
    assert np.isfinite(slope)


def test_leave_one_out_is_leaving_one_out(prior, data):
    x, y = data

    @jax.jit
    def at_row(keep, row):
        left = prior.condition(x, y, NOISE, observed=keep)(row, NOISE)
        return left.mean, left.variance

    for mask in (np.ones(12, bool), np.arange(12) != 5):
        found = prior.condition(x, y, NOISE, observed=mask).leave_one_out()
        means, variances = np.asarray(found.mean), np.asarray(found.variance)
        for i in range(12):
            mean, variance = at_row(mask & (np.arange(12) != i), np.asarray(x)[i : i + 1])
            assert means[i] == pytest.approx(float(mean[0]), abs=1e-10)
            assert variances[i] == pytest.approx(float(variance[0]), abs=1e-10)


def test_terms_add_up_and_follow_their_own_covariance(prior, data, queries):
    x, y = data
    posterior = prior.condition(x, y, NOISE)
    terms = posterior.terms()
    assert len(terms) == 2
    total = sum(term.mean_at(queries) for term in terms) + 0.4
    np.testing.assert_allclose(total, posterior.mean_at(queries), atol=1e-12)
    # The first term, by the joint normal of (f_1, y).
    first = prior.kernel.first
    outputs = prior.kernel.gram(x) + NOISE**2 * jnp.eye(12)
    cross = first.gram(queries, x)
    spread = first.gram(queries) - cross @ jnp.linalg.solve(outputs, cross.T)
    np.testing.assert_allclose(terms[0].covariance(queries), spread, atol=1e-12)


def test_additive_terms_open_sums_inside_scalings_and_active_dimensions(queries):
    kernel = 2.0 * (RBF() + Matern32() * RBF()).on((1,)) + Matern52()
    parts = additive_terms(kernel)
    assert len(parts) == 3
    total = sum(part.gram(queries) for part in parts)
    np.testing.assert_allclose(total, kernel.gram(queries), rtol=1e-12)


def test_a_one_dimensional_input_is_a_column(prior):
    x = jnp.linspace(0, 1, 4)
    gp = GaussianProcess(RBF())
    np.testing.assert_array_equal(gp(x).covariance_matrix, gp(x[:, None]).covariance_matrix)


def test_fantasies_are_a_vmap_over_conditioning(prior, data, queries):
    x, y = data
    posterior = prior.condition(x, y, NOISE)
    outcomes = jnp.array([[-1.0], [0.0], [2.0]])

    def mean_after(outcome):
        return posterior.condition(queries[:1], outcome, NOISE).mean_at(queries)

    together = jax.jit(jax.vmap(mean_after))(outcomes)
    alone = [jax.jit(mean_after)(outcome) for outcome in outcomes]
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_new_values_of_equal_shape_compile_nothing(data, queries):
    traces = 0

    class Counted(Kernel):
        lengthscale: float = positive(1.0, kind="lengthscale")

        def __call__(self, x, y):
            nonlocal traces
            traces += 1
            return jnp.exp(-jnp.sum((x - y) ** 2) / self.lengthscale)

    x, y = data

    def use(lengthscale, noise):
        posterior = GaussianProcess(Counted(lengthscale)).condition(x, y, noise)
        values = posterior(queries, noise)
        return values.mean, values.variance, values.sample(jax.random.key(0))

    use(1.0, 0.1)
    before = traces
    assert before > 0
    use(2.0, 0.3)
    assert traces == before


def test_crosses_jit_and_vmap(prior, data):
    x, y = data
    values = prior(x, NOISE)
    assert float(jax.jit(lambda v: v.log_prob(y))(values)) == pytest.approx(
        float(values.log_prob(y))
    )
    scales = jnp.array([0.1, 0.2])
    log_prob = jax.jit(lambda s: prior(x, s).log_prob(y))
    mapped = jax.jit(jax.vmap(log_prob))(scales)
    np.testing.assert_allclose(mapped, [log_prob(s) for s in scales], rtol=1e-12)


def test_is_a_distribution_to_numpyro(prior, queries):
    values = prior(queries)
    assert values.event_shape == (5,) and values.batch_shape == () and values.has_rsample
    assert values.support is constraints.real_vector
    expanded = values.expand((3,))
    draws = expanded.sample(jax.random.key(0), (2,))
    assert draws.shape == (2, 3, 5) and expanded.log_prob(draws).shape == (2, 3)
    scaled = numpyro.handlers.scale(lambda: numpyro.sample("f", values), 2.0)
    trace = numpyro.handlers.trace(numpyro.handlers.seed(scaled, 0)).get_trace()
    assert trace["f"]["scale"] == 2.0
    assert isinstance(prior, Process)


def test_whitened_sites_have_the_same_law(queries):
    def model():
        scale = numpyro.sample("scale", HalfNormal())
        f = numpyro.sample("f", GaussianProcess(RBF(1.0, scale**2), 0.3)(queries, 0.1))
        numpyro.sample("y", Normal(f, 0.5).to_event(1), obs=jnp.arange(5.0))

    white = numpyro.handlers.reparam(model, config={"f": WhitenReparam()})
    values = {"scale": jnp.array(0.7), "f_base": jnp.arange(5.0) / 3}
    trace = numpyro.handlers.trace(
        numpyro.handlers.seed(numpyro.handlers.substitute(white, values), 0)
    ).get_trace()
    f = trace["f"]["value"]
    density, _ = numpyro.infer.util.log_density(white, (), {}, values)
    plain, _ = numpyro.infer.util.log_density(model, (), {}, {"scale": values["scale"], "f": f})
    # p(u) = p(f) |df/du|, and |df/du| = |L|.
    factor = GaussianProcess(RBF(1.0, 0.49), 0.3)(queries, 0.1).scale_tril
    log_jacobian = jnp.sum(jnp.log(jnp.diagonal(factor)))
    assert float(density) == pytest.approx(float(plain + log_jacobian), rel=1e-10)


def test_jitter_is_reported_and_only_where_needed(data):
    x, y = data
    assert float(GaussianProcess(RBF()).condition(x, y, NOISE).jitter) == 0
    twice = jnp.concatenate([x, x])
    posterior = GaussianProcess(RBF()).condition(twice, jnp.concatenate([y, y]), 0.0)
    assert 0 < float(posterior.jitter) < 1e-8
    assert jnp.all(jnp.isfinite(posterior(x).mean))


class Indefinite(Kernel):
    """Not a covariance: -1 on the diagonal."""

    def __call__(self, x, y):
        return -jnp.where(jnp.all(x == y), 1.0, 0.0)


X = np.linspace(0, 1, 4)
BAD = {
    "a kernel": (lambda: GaussianProcess(1.0), "`kernel` must be a kernel"),
    "a mean": (lambda: GaussianProcess(RBF(), "zero"), "`mean` must be a number or a function"),
    "mean of one point": (
        lambda: GaussianProcess(RBF(), lambda x: x).condition(X, X, 0.1),
        "`mean` must return a number for one point",
    ),
    "points": (lambda: GaussianProcess(RBF())(np.zeros((2, 2, 2))), r"must be \(N, D\)"),
    "no points": (lambda: GaussianProcess(RBF())(np.zeros((0, 2))), r"got shape \(0, 2\)"),
    "nan in x": (lambda: GaussianProcess(RBF())(np.array([1, np.nan])), "`x` must be finite; 1 of"),
    "nan in y": (
        lambda: GaussianProcess(RBF()).condition(X, X * np.nan, 0.1),
        "4 of 4 are not. Pass `observed=`",
    ),
    "length of y": (lambda: GaussianProcess(RBF()).condition(X, X[:2], 0.1), r"must be \(4,\)"),
    "negative noise": (lambda: GaussianProcess(RBF())(X, -1.0), "must be non-negative; got -1.0"),
    "noise of wrong length": (lambda: GaussianProcess(RBF())(X, X[:2]), "must be a number or"),
    "a mask of numbers": (
        lambda: GaussianProcess(RBF())(X, 0.1, observed=np.ones(4)),
        "`observed` must be 4 booleans",
    ),
    "new inputs of other width": (
        lambda: GaussianProcess(RBF()).condition(X, X, 0.1)(np.zeros((2, 3))).mean,
        "must have 1 coordinates",
    ),
    "lengthscales for other coordinates": (
        lambda: GaussianProcess(RBF(np.ones(3)))(X).variance,
        "`lengthscale` must be a scalar or one for each of the D = 1",
    ),
    "nothing observed": (lambda: GaussianProcess(RBF()).leave_one_out(), "nothing was observed"),
    "not a covariance": (
        lambda: GaussianProcess(Indefinite()).condition(X, X, 0.1),
        "not positive definite, not even with jitter",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("obs", [True, False])
def test_whitening_refuses_what_it_cannot_do(queries, obs):
    def model():
        if obs:
            numpyro.sample("f", GaussianProcess(RBF())(queries), obs=jnp.zeros(5))
        else:
            numpyro.sample("f", Normal())

    white = numpyro.handlers.reparam(model, config={"f": WhitenReparam()})
    with pytest.raises(ValueError, match="is observed" if obs else "must hold the values of a"):
        numpyro.handlers.seed(white, 0)()


@pytest.mark.smoke
def test_float32_and_duplicated_rows_train_without_nan():
    with jax.enable_x64(False):
        rng = np.random.default_rng(0)
        x = np.repeat(rng.integers(0, 4, size=(30, 3)), 2, axis=0).astype(np.float32)
        y = rng.integers(3, 9, size=60).astype(np.float32)

        def loss(raw):
            kernel = RBF(jnp.exp(raw[:3]), jnp.exp(raw[3]))
            return -GaussianProcess(kernel).log_evidence(x, y, jnp.exp(raw[4]))

        for noise in (-1.0, -9.0):
            value, slope = jax.value_and_grad(loss)(jnp.array([1.0, 1.0, 1.0, 2.0, noise]))
            assert value.dtype == jnp.float32 and jnp.isfinite(value)
            assert jnp.all(jnp.isfinite(slope))
