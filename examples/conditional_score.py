"""How does what is spent on food depend on income? The conditional score of household data.

    python examples/conditional_score.py          (pictures in output/conditional_score)

Engel's 235 Belgian households (1857). The score of the food expenditure x given the income c,
d log q(x | c) / dx, is 0 at the most probable expenditure and falls with a slope that is one over
the variance: both are read from the samples, without a model of either. A linear regression with
Gaussian residuals has the same slope at every income; the households of small incomes lie much
closer together. Two thirds of the households are fitted and one third judges, by the score-matching
loss, in which the true score does not appear.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import statsmodels.api as sm

from implicitppl.score import SSGE, FittedScore, Gaussian, select

SPLITS = 20
INCOMES = (500.0, 900.0, 1500.0)


def households() -> tuple[np.ndarray, np.ndarray]:
    """Return food expenditures (N, 1) and incomes (N, 1) in francs, without the two richest."""
    table = sm.datasets.engel.load_pandas().data
    table = table[table["income"] < 2600]
    return table[["foodexp"]].to_numpy(), table[["income"]].to_numpy()


def loss(fitted: FittedScore, food: np.ndarray, income: np.ndarray, unit: float) -> float:
    """Return the score-matching loss of held-out households, in units of the spread of food."""
    score, slope = fitted(food, income), fitted.divergence(food, income)
    return float(unit**2 * jnp.mean(0.5 * jnp.sum(score**2, axis=1) + slope))


def compare(food: np.ndarray, income: np.ndarray, splits: int) -> None:
    """Print the held-out loss of each estimate, and its paired difference to the regression."""
    fits = {
        "linear regression": lambda x, c: Gaussian().fit(x, covariates=c),
        "SSGE": lambda x, c: SSGE().fit(x, covariates=c),
        "select": lambda x, c: select(x, covariates=c, key=jax.random.key(0)),
    }
    found: dict[str, list[float]] = {name: [] for name in fits}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(food))
        train, judge = np.split(order, [2 * len(food) // 3])
        for name, fit in fits.items():
            fitted = fit(food[train], income[train])
            found[name].append(loss(fitted, food[judge], income[judge], food.std()))
    print("held-out loss, and its difference to the regression (standard error over splits)")
    for name, values in found.items():
        gain = np.subtract(values, found["linear regression"])
        error = gain.std(ddof=1) / np.sqrt(splits)
        print(f"  {name:18s} {np.mean(values):8.2f} {gain.mean():+8.2f} ({error:.2f})")


def draw(food: np.ndarray, income: np.ndarray, out: Path) -> None:
    """Write the households with the zero of the score, and the score at three incomes."""
    from matplotlib.figure import Figure

    fitted = select(food, covariates=income, key=jax.random.key(0))
    linear = Gaussian().fit(food, covariates=income)
    print(fitted.info.explain())
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = np.linspace(200, 1700, 121)[:, None]
    c = np.linspace(350, 2500, 101)
    rows = np.broadcast_to(x[None], (101, 121, 1))
    field = np.array(fitted(rows, c[:, None, None]))[..., 0].T
    off = np.asarray(fitted.off_support(rows, c[:, None, None])).T
    field[off] = np.nan
    image = left.pcolormesh(
        c, x[:, 0], field, cmap="RdBu_r", vmin=-0.02, vmax=0.02, rasterized=True
    )
    figure.colorbar(image, ax=left, label="score given the income, 1 / franc")
    left.plot(income, food, "o", color="0.2", ms=2.5)
    left.set(xlabel="income, francs", ylabel="food expenditure, francs")
    left.set_title("More food is more probable where red; white: no household near", fontsize=10)
    for colour, value in zip(("#3b6fb6", "#3a923a", "#d1560f"), INCOMES, strict=True):
        at = np.full((1,), value)
        near = ~np.asarray(fitted.off_support(x, at))
        right.plot(
            x[near], np.asarray(fitted(x, at))[near], color=colour, label=f"{value:g} francs"
        )
        right.plot(x[near], np.asarray(linear(x, at))[near], "--", color=colour, lw=1)
    right.axhline(0, color="black", lw=0.8)
    right.set(xlabel="food expenditure, francs", ylabel="score, 1 / franc")
    right.set_title("Score at three incomes (dashed: linear regression)", fontsize=10)
    right.legend(frameon=False)
    figure.savefig(out / "conditional.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/conditional_score"))
    parser.add_argument("--quick", action="store_true", help="three splits instead of twenty")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    food, income = households()
    compare(food, income, 3 if args.quick else SPLITS)
    draw(food, income, args.out)
    print(f"pictures: {args.out}")


if __name__ == "__main__":
    main()
