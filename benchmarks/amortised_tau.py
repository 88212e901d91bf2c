"""One model for all offsets: does it rank them as one training per offset does?

    python benchmarks/amortised_tau.py measure     # run it in several shells to use more cores; it can be killed and run again
    python benchmarks/amortised_tau.py report      # the tables, and docs/amortised-tau.png

``measure`` needs a C++ compiler and the finished stages of the digits (``make repro``). For every seed, it trains
one model per tau, and one model whose images draw tau from [0, 1]. It refines the latter at each tau, and scores all models alike.
"""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock, Timeout

WORK = Path(".sfd/amortised_tau")
TAUS, SEEDS, REPEATS = (0.0, 0.1, 0.3, 0.5, 0.8), (0, 1, 2), 2
TRAIN_STEPS, REFINE_STEPS = 1600, 200
METHODS = {
    "point": "one training per tau",
    "shared": "one training for all",
    "refined": "the same, refined at each tau",
}
app = typer.Typer(no_args_is_help=True, add_completion=False)


def tasks() -> list[tuple[str, int]]:
    """Name and seed of each training. The shared ones come first, because they take longest."""
    return [("shared", seed) for seed in SEEDS] + [(f"{tau:g}", seed) for seed in SEEDS for tau in TAUS]


@app.command()
def measure() -> None:
    """Runs every training that no other process has done or is doing."""
    import torch

    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    for name, seed in tasks():
        result = WORK / f"{name}-{seed}.json"
        try:
            with FileLock(result.with_suffix(".lock"), timeout=0):
                if not result.exists():
                    rows = run(name, seed)
                    result.write_text(json.dumps(rows, indent=1))
                    print(f"{name} seed {seed}: {rows}", flush=True)
        except Timeout:
            continue


def run(name: str, seed: int) -> list[dict[str, Any]]:
    """Trains one model and scores it. The shared model is scored at every tau, as it is and refined."""
    from sfd.params import parse_params
    from sfd.tuning.evaluator import CandidateEvaluator
    from sfd.workspace import Workspace

    workspace = Workspace.find()
    tree = workspace.load_params().model_dump(mode="json", by_alias=True)
    tree["schedule"] |= {"kind": "offset", "tau": {"low": 0.0, "high": 1.0} if name == "shared" else float(name)}
    tree["sample"] |= {"guidance": {"kind": "none"}, "sampler": "heun", "num_steps": 10}
    tree["diffusion"]["training"] |= {"num_steps": TRAIN_STEPS, "compile": True}
    tree["tune"] |= {"refine_steps": REFINE_STEPS, "report_every": 10**9, "num_images": 500, "kind": "sampling"}

    def with_tau(tau: float) -> Any:
        tree["sample"]["schedule"] = tree["schedule"] | {"tau": tau}
        return parse_params(tree)

    evaluator = CandidateEvaluator(workspace, with_tau(0.5 if name == "shared" else float(name)))
    folder = WORK / f"{name}-{seed}"
    model = evaluator.train(evaluator.params, seed, fresh(folder))
    rows = []
    for tau in TAUS if name == "shared" else (float(name),):
        rows.append(
            row("shared" if name == "shared" else "point", tau, seed, TRAIN_STEPS, evaluator, model, with_tau(tau))
        )
    if name == "shared":
        for tau in TAUS:
            refined = evaluator.refine(model, with_tau(tau), seed, fresh(folder))
            rows.append(row("refined", tau, seed, REFINE_STEPS, evaluator, refined, with_tau(tau)))
    shutil.rmtree(folder)
    return rows


def fresh(folder: Path) -> Path:
    """Empties the folder, so that no checkpoint of another training is continued."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def row(method: str, tau: float, seed: int, steps: int, evaluator: Any, model: Any, params: Any) -> dict[str, Any]:
    """One row of results: means of the metrics over the sampling seeds."""
    found = [evaluator.score(model, params, "study", repeat).metrics for repeat in range(REPEATS)]
    means = {key: statistics.fmean(metrics[key] for metrics in found) for key in ("fd", "kid", "class_accuracy")}
    return {"method": method, "tau": tau, "seed": seed, "steps": steps, **means}


@app.command()
def report(docs: Path = Path("docs")) -> None:
    """Prints the tables of the results, and draws the picture."""
    import pandas as pd

    found = pd.DataFrame([row for file in sorted(WORK.glob("*.json")) for row in json.loads(file.read_text())])
    missing = len(METHODS) * len(TAUS) * len(SEEDS) - len(found)
    if missing:
        raise SystemExit(f"{missing} measurements are missing; run `python benchmarks/amortised_tau.py measure` first")
    lines = ["| tau | " + " | ".join(f"{text}: fd | class accuracy" for text in METHODS.values()) + " |"]
    lines.append("|" + "---|" * (1 + 2 * len(METHODS)))
    for tau in TAUS:
        cells = [spread(found, method, tau, metric) for method in METHODS for metric in ("fd", "class_accuracy")]
        lines.append(f"| {tau:g} | " + " | ".join(cells) + " |")
    lines += ["", "| | " + " | ".join(METHODS.values()) + " |", "|" + "---|" * (1 + len(METHODS))]
    for metric in ("fd", "class_accuracy"):
        name = f"rank correlation of {metric} with one training per tau"
        lines.append(
            f"| {name}, means over seeds | " + " | ".join(correlation(found, m, metric) for m in METHODS) + " |"
        )
        lines.append(f"| {name}, each seed | " + " | ".join(correlations(found, m, metric) for m in METHODS) + " |")
    lines.append("| lowest mean fd at tau | " + " | ".join(f"{best(found, method):g}" for method in METHODS) + " |")
    lines.append(
        "| training steps for all taus, per seed | " + " | ".join(str(steps(found, m)) for m in METHODS) + " |"
    )
    draw(found, docs / "amortised-tau.png")
    print("\n".join(lines))


def spread(found: Any, method: str, tau: float, metric: str) -> str:
    """Mean and standard error over the seeds."""
    values = found[(found.method == method) & (found.tau == tau)][metric]
    return f"{values.mean():.3f} ± {values.sem():.3f}"


def correlation(found: Any, method: str, metric: str) -> str:
    """Spearman's rank correlation over the taus, between a method and one training per tau, each averaged over the seeds."""
    table = found.pivot_table(index="tau", columns="method", values=metric)
    return f"{table[method].corr(table['point'], method='spearman'):.2f}"


def correlations(found: Any, method: str, metric: str) -> str:
    """For each seed, the rank correlation with one training per tau, averaged over all seeds."""
    truth = found[found.method == "point"].groupby("tau")[metric].mean()
    chosen = found[found.method == method].pivot_table(index="tau", columns="seed", values=metric)
    return ", ".join(f"{chosen[seed].corr(truth, method='spearman'):.2f}" for seed in SEEDS)


def best(found: Any, method: str) -> float:
    """The tau with the lowest mean distance."""
    return float(found[found.method == method].groupby("tau").fd.mean().idxmin())


def steps(found: Any, method: str) -> int:
    """Training steps needed to score all taus with one seed. Refining includes the shared training."""
    of_taus = found[(found.method == method) & (found.seed == SEEDS[0])].steps
    shared = int(found[found.method == "shared"].steps.iloc[0])
    return {"point": int(of_taus.sum()), "shared": shared, "refined": shared + int(of_taus.sum())}[method]


def draw(found: Any, file: Path) -> None:
    """Distance and class accuracy over tau, with standard errors over the seeds."""
    from matplotlib.figure import Figure

    from sfd.pictures import FAINT, GAP_COLOUR, INK, PALETTE, save_figure

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    labels = {"fd": "Frechet distance on the judge's features", "class_accuracy": "class accuracy"}
    for axes, (metric, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for number, (method, text) in enumerate(METHODS.items()):
            rows = found[found.method == method].groupby("tau")[metric]
            # Side by side, so that the error bars of different methods do not hide one another.
            axes.errorbar(
                [tau + 0.008 * (number - 1) for tau in TAUS],
                rows.mean(),
                yerr=rows.sem(),
                label=text,
                color=PALETTE[number],
                marker="o",
                capsize=3,
            )
        axes.set_xlabel("tau", color=INK)
        axes.set_ylabel(label, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=FAINT, labelcolor=INK)
        axes.grid(axis="y", color=GAP_COLOUR)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, file)


if __name__ == "__main__":
    app()
