"""Which way is more probable? The score of household data, without a model of them.

    python examples/score_field.py                (pictures in output/score_field)

Engel's 235 Belgian households (1857): income and what is spent on food. The spread grows with
income and the tail is long, so a Gaussian is wrong, and 235 households are few for a kernel. Two
thirds are fitted, one third judges: the score-matching loss needs no true score. The arrows of the
picture lead to more probable households; grey is where no household is near.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import statsmodels.api as sm

from implicitppl.diagnostics import plot_selection
from implicitppl.score import KDE, KEF, SSGE, Gaussian, Stein, matching_loss, select

SPLITS = 20


def households() -> np.ndarray:
    """Return income and food expenditure, in standard deviations."""
    table = sm.datasets.engel.load_pandas().data[["income", "foodexp"]].to_numpy()
    return (table - table.mean(axis=0)) / table.std(axis=0)


def losses(x: np.ndarray, splits: int) -> dict[str, np.ndarray]:
    """Return the held-out loss of each estimator on each split."""
    estimators = {
        "select": lambda s: select(s, key=jax.random.key(0)),
        "Gaussian": Gaussian().fit,
        "KEF": KEF(reference="gaussian").fit,
        "SSGE": SSGE().fit,
        "Stein": Stein().fit,
        "KDE": KDE().fit,
    }
    found: dict[str, list[float]] = {name: [] for name in estimators}
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(x))
        cut = 2 * len(x) // 3
        train, judge = (jnp.asarray(x[rows], jnp.float32) for rows in np.split(order, [cut]))
        for name, fit in estimators.items():
            found[name].append(float(matching_loss(fit(train), judge)))
    return {name: np.array(values) for name, values in found.items()}


def draw_field(x: np.ndarray, out: Path) -> None:
    """Write the field of scores of `select`, and what it compared."""
    from matplotlib.figure import Figure

    fitted = select(jnp.asarray(x, jnp.float32), key=jax.random.key(0))
    print(fitted.info.explain())
    low, high = x.min(axis=0) - 0.7, x.max(axis=0) + 0.7
    axes = [np.linspace(a, b, 26) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes), axis=-1).astype(np.float32)
    score, off = np.asarray(fitted(points)), np.asarray(fitted.off_support(points))
    length = np.linalg.norm(score, axis=-1, keepdims=True)
    arrow = score / np.maximum(length, 1e-9) * np.tanh(length)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    for rows, colour in ((off, "0.8"), (~off, "#3b6fb6")):
        at, by = points[rows], arrow[rows]
        axis.quiver(*at.T, *by.T, color=colour, angles="xy", scale=28, width=0.003)
    axis.plot(*x.T, "o", color="#d1560f", ms=3, alpha=0.7)
    axis.set(xlabel="income, sd", ylabel="food expenditure, sd")
    axis.set_title("The way to more probable households (grey: no household near)")
    figure.savefig(out / "field.png", dpi=110)
    plot_selection(fitted, title="235 households").savefig(out / "selection.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/score_field"))
    parser.add_argument("--quick", action="store_true", help="three splits instead of twenty")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    x = households()
    found = losses(x, 3 if args.quick else SPLITS)
    gaussian = found["Gaussian"]
    print(
        "held-out score-matching loss: median of the splits, mean, and the mean difference to the"
    )
    print(
        "Gaussian (s.e.). The few richest households decide the mean: where they are held out, no"
    )
    print("sample is near, and an estimate that goes to 0 there loses least.")
    for name, values in sorted(found.items(), key=lambda item: np.median(item[1])):
        gain = values - gaussian
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        middle = np.median(values)
        print(f"  {name:9s} {middle:8.2f} {values.mean():8.2f} {gain.mean():+8.2f} ({error:.2f})")
    draw_field(x, args.out)
    print(f"pictures: {args.out}")


if __name__ == "__main__":
    main()
