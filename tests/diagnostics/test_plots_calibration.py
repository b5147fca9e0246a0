"""Pictures hold what they should; calibration accepts an exact guide and rejects wrong ones."""

import equinox as eqx
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.infer import Trace_ELBO

from implicitppl.diagnostics import calibration, plot_forest, plot_loss, plot_pair, plot_selection
from implicitppl.diagnostics._statistics.calibration import (
    _brownian_tail,
    _uniformity_p_value,
    symmetry_p_value,
)
from implicitppl.score import Gaussian, select


def _draws(seed, shift=0.0):
    z = np.random.default_rng(seed).normal(size=(300, 2)).astype(np.float32)
    return {"mu": z[:, 0] + shift, "tau": np.abs(z[:, 1]), "x": z + shift}


def test_selection_plot():
    rng = np.random.default_rng(0)
    fitted = select(rng.gumbel(size=(60, 1)).astype(np.float32), key=random.key(0))
    info = fitted.info
    figure = plot_selection(fitted)
    panel = figure.axes[0]  # RBF without a reference: a line for each width and power, and zero
    lines = [line for line in panel.lines if len(line.get_xdata()) == 13]
    assert len(lines) == 10
    charged = np.asarray(info.all_gains[0] + 2.5 * info.all_errors[0])[:13]
    shown = np.asarray(lines[0].get_ydata())
    top = panel.get_ylim()[1]
    np.testing.assert_allclose(shown[shown < top], charged[shown < top], rtol=1e-5)
    circles = sum(len(axis.collections) for axis in figure.axes)
    assert circles == int(np.sum(np.asarray(info.weights) > 0)) > 0
    with pytest.raises(ValueError, match="must be one score made by"):
        plot_selection(Gaussian().fit(np.eye(3)))
    few = eqx.filter_jit(select)(rng.gumbel(size=(5, 1)).astype(np.float32), key=random.key(0))
    with pytest.raises(ValueError, match="has no candidates to show: 5 samples"):
        plot_selection(few)


def test_pair_plot(tmp_path):
    figure = plot_pair(_draws(0), _draws(1), ["mu", "tau", "x"], title="two samples")
    assert len(figure.axes) == 10  # lower triangle of four scalars
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["NUTS", "guide"]
    assert [a.get_xlabel() for a in figure.axes[-4:]] == ["mu", "tau", "x[0]", "x[1]"]
    assert figure.axes[2].get_xlim()[0] == 0  # tau is positive and reaches zero
    figure.savefig(tmp_path / "pair.png")
    # a shifted guide's marginal is drawn to the right of the reference's
    lines = plot_pair(_draws(0), _draws(1, 2.0), ["mu"]).axes[0].lines
    peaks = [line.get_xdata()[np.argmax(line.get_ydata())] for line in lines]
    assert peaks[1] - peaks[0] > 1
    constant = {"mu": np.zeros(50)}
    plot_pair(_draws(0), constant, ["mu"]).savefig(tmp_path / "constant.png")


def test_forest_plot(tmp_path):
    figure = plot_forest(_draws(0), _draws(1), standardise=True)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["mu", "tau", "x[0]", "x[1]"]
    first, second = figure.axes[0].lines
    x = _draws(0)["mu"]
    np.testing.assert_allclose(first.get_xdata()[0], (np.median(x) - x.mean()) / x.std(), atol=1e-5)
    assert np.all(first.get_ydata() < second.get_ydata())
    figure.savefig(tmp_path / "forest.png")


def test_loss_plot(tmp_path):
    losses = 1e6 / np.arange(1, 501) ** 3 + 10.0
    losses[100] = np.nan
    figure = plot_loss(losses, ylabel="negative ELBO", title="loss")
    low, high = figure.axes[0].get_ylim()
    assert low < 10 < high < 30  # the first steps do not set the scale
    figure.savefig(tmp_path / "loss.png")
    with pytest.raises(ValueError, match="with a finite entry; got shape"):
        plot_loss(np.full(5, np.nan))


def test_symmetry_test_has_its_level_where_the_two_sample_test_has_not():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    samples = rng.uniform(size=(1000, 100))
    ours = np.mean([symmetry_p_value(p) < 0.05 for p in samples])
    naive = np.mean([ks_2samp(p, 1 - p, method="asymp").pvalue < 0.05 for p in samples])
    error = np.sqrt(0.05 * 0.95 / 1000)
    assert 0.02 < ours < 0.05 + 3 * error
    assert naive > 0.05 + 3 * error
    # closed form of the limit: P(sup |W| > 2.2414) = .05
    assert _brownian_tail(2.2414) == pytest.approx(0.05, abs=1e-4)
    assert _brownian_tail(0.0) == 1.0


def test_symmetry_sees_bias_and_uniformity_sees_width():
    rng = np.random.default_rng(1)
    narrow = rng.beta(0.4, 0.4, size=200)  # too narrow a posterior: p piles up at both ends
    assert symmetry_p_value(narrow) > 0.01
    assert _uniformity_p_value(narrow) < 1e-3
    assert symmetry_p_value(rng.beta(2, 1, size=200)) < 1e-3


@pytest.mark.slow
@pytest.mark.statistical
def test_calibration_accepts_the_exact_guide_and_rejects_a_narrow_one():
    pytest.importorskip("numpyro.infer.calibration")

    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    def exact(y=None):
        numpyro.sample("mu", dist.Normal(numpyro.param("a", 0.5) * y, np.sqrt(0.5)))

    def narrow(y=None):
        numpyro.sample("mu", dist.Normal(numpyro.param("a", 0.5) * y, 0.4 * np.sqrt(0.5)))

    def biased(y=None):
        numpyro.sample("mu", dist.Normal(numpyro.param("a", 0.5) * y + 0.5, np.sqrt(0.5)))

    def run(guide):
        return calibration(
            random.key(0),
            model,
            guide,
            numpyro.optim.Adam(1e-6),
            Trace_ELBO(),
            observed_sites=["y"],
            num_simulations=150,
            num_svi_steps=1,
            num_samples=200,
        )

    good, thin, off = run(exact), run(narrow), run(biased)
    assert good.ok
    assert good.names == ("mu",)
    assert not thin.ok and thin.symmetry[0] > 0.01  # symmetric: only uniformity sees it
    assert not off.ok and off.symmetry[0] < 0.005
    assert "uniformity" in str(good)


def test_calibration_names_the_version_it_needs(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "numpyro.infer.calibration", None)
    with pytest.raises(NotImplementedError, match="needs numpyro >= 0.22"):
        calibration(random.key(0), print, print, None, None)
