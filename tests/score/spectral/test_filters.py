import jax.numpy as jnp
import numpy as np
import pytest

from implicitppl.score import Cutoff
from implicitppl.score._spectral.filters import Ridge, TikhonovFilter

VALUES = jnp.array([8.0, 1.5, 0.4, 0.1])
TRACE = jnp.array(10.0)


@pytest.mark.parametrize(
    ("explained", "number"),
    [(0.5, 1), (0.81, 2), (0.9, 2), (0.96, 3), (1.0, 4)],
)
def test_cutoff_keeps_the_eigenvalue_that_crosses_the_share(explained, number):
    # Masses .80, .95, .99, 1. Counting those below the share gives 0 for .5, and a slice [-0:]
    # then keeps everything.
    multipliers = Cutoff(explained=explained)(VALUES, TRACE, 10)
    np.testing.assert_array_equal(multipliers, np.arange(4) < number)


def test_cutoff_by_number_takes_precedence():
    np.testing.assert_array_equal(Cutoff(2, 0.5)(VALUES, TRACE, 10), [1, 1, 0, 0])


def test_ridge_adds_eta_to_each_eigenvalue_that_ssge_divides_by():
    # C = U diag(M f / l^2) U^T B; adding eta to l there is f = l^2 / (l + eta)^2.
    multipliers = Ridge(0.5)(VALUES, TRACE, 10)
    np.testing.assert_allclose(10 * multipliers / VALUES**2, 10 / (VALUES + 0.5) ** 2, rtol=1e-6)


def test_tikhonov_inverts_the_shifted_operator():
    # g(t) = f(t)/t = 1/(t + lam), lam = eta / M.
    t = VALUES / 10
    multipliers = TikhonovFilter(0.5)(VALUES, TRACE, 10)
    np.testing.assert_allclose(multipliers / t, 1 / (t + 0.05), rtol=1e-6)


def test_no_ridge_keeps_everything_and_zero_stays_zero():
    for family in (Ridge, TikhonovFilter):
        np.testing.assert_array_equal(family(0.0)(jnp.array([1.0, 0.0]), TRACE, 10), [1, 0])


def test_filters_multiply():
    both = Cutoff(3) * TikhonovFilter(0.5) * Ridge(0.25)
    expected = (
        Cutoff(3)(VALUES, TRACE, 10)
        * TikhonovFilter(0.5)(VALUES, TRACE, 10)
        * Ridge(0.25)(VALUES, TRACE, 10)
    )
    np.testing.assert_allclose(both(VALUES, TRACE, 10), expected)
    assert both.num_eigenfunctions == 3 and both.ridge == 0.75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cutoff(0), r"`number` must be an integer of at least 1; got 0"),
        (lambda: Cutoff(explained=1.5), r"`explained` must be in \(0, 1\]; got 1.5"),
        (lambda: Cutoff(explained=float("nan")), r"`explained` must be in \(0, 1\]; got nan"),
        (lambda: Ridge(-1.0), r"`ridge` must be non-negative; got -1.0"),
        (lambda: TikhonovFilter(float("nan")), r"`ridge` must be non-negative; got nan"),
    ],
)
def test_errors_name_argument_rule_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
