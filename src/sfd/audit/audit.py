"""The command ``sfd audit``: are samples copies of training images, and does the model reveal what it was trained on?

Samples are cropped to the centre and resized as training images are. So a training file among the samples is found, whatever its size.
"""

import json
import shutil
from itertools import chain
from pathlib import Path

import pandas as pd

from sfd.audit.findings import Attack, Crops, Neighbours, Samples, Size, SizesOf
from sfd.audit.membership import CONFIDENCE, losses_of_images, separation
from sfd.audit.report import describe, page, table
from sfd.data.batches import in_batches, read_ahead
from sfd.data.images import ManifestImages, Pixels
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.composite import CompositeEncoder
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.errors import UserError
from sfd.evaluation.memorisation import memorisation
from sfd.evaluation.views import (
    NUM_CLOSEST,
    choose,
    choose_mix,
    judge_images,
    picture_nearest,
    training_views,
)
from sfd.generation import generated
from sfd.generation import samples as sampled
from sfd.generation.model import DiffusionModel
from sfd.params import DataParams, Params, ReadingRuntime
from sfd.pipeline.inputs import check_current
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import replace_result
from sfd.pipeline.work import lock
from sfd.precision import Inference
from sfd.registry.versions import find_registered, read_registration
from sfd.seeding import derive_seed
from sfd.workspace import Workspace

UPSTREAM = ("prepare", "encoder", "texture_vae", "judge", "semantic", "latents", "diffusion")
MAX_ATTACKED = 500
"""The largest number of training images, and of held-out images, whose losses are compared."""


def audit(workspace: Workspace, folder: Path) -> str:
    """Writes ``results/audit`` and returns a short table with the verdicts.

    Raises:
        UserError: before anything is computed: a result is missing or out of date, or the folder holds no images.
    """
    params = workspace.load_params()
    check_current(workspace, UPSTREAM, params)
    samples = find_samples(folder, params.data, params.runtime.evaluate)
    data = open_prepared(workspace, params)
    inference = Inference.of(params.runtime.evaluate)
    judge = inference.place(load_judge(workspace.judge(params.first_judge.name)))
    work = workspace.work("audit")
    with lock(work, "an audit"):
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        neighbours = find_neighbours(samples, params, data, judge)
        _write_neighbours(neighbours, samples, data, out)
        attack = attack_model(workspace, params, data, inference)
        facts = describe(samples, neighbours, attack, _note(workspace, samples, params), inference.computed_in)
        (out / "audit.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (out / "report.md").write_text(page(facts), encoding="utf-8")
        replace_result(workspace, "audit", out)
    return f"{table(facts)}\n\nreport: {workspace.result('audit') / 'report.md'}"


def find_samples(folder: Path, params: DataParams, runtime: ReadingRuntime) -> Samples:
    """The images that the folder's table names, or all images in the folder and its subfolders if there is no table.

    A table is ``samples.parquet`` of `sfd generate` or ``samples.csv`` of stage `sample`.

    Raises:
        UserError: there is no folder or no image, or a file in the table cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds images")
    version, table = None, None
    if (folder / generated.TABLE).is_file() or generated.is_generated(folder):
        table = generated.read_table(folder)
        files, version = table["file"].tolist(), (table["model"].iloc[0], table["model_version"].iloc[0])
    elif (folder / sampled.TABLE).is_file():
        table = sampled.read_table(folder)
        files = [f"images/{file}" for file in table["file"]]
    else:
        paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
        files = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    sizes, refused = _look_at(SizesOf(folder, files, params.max_pixels), runtime)
    if refused and table is not None:
        file = next(iter(refused))
        raise UserError(
            f"{folder / file} is in the folder's table, but cannot be read ({refused[file]}); make the folder again"
        )
    if not sizes:
        raise UserError(
            f"{folder} holds no image ({len(refused)} other files); give a folder of PNG, JPEG, WebP or BMP"
        )
    num_cropped = sum(size != (params.image_size,) * 2 for size in sizes.values())
    classes = table["class"].tolist() if table is not None and "class" in table else None
    return Samples(folder, list(sizes), version, refused, num_cropped, classes)


def _look_at(images: SizesOf, runtime: ReadingRuntime) -> tuple[dict[str, Size], dict[str, str]]:
    """Sizes of the files that are images, and for each of the others the reason why it was refused."""
    with read_ahead(images, in_batches(range(len(images)), runtime.batch_size), runtime.num_workers) as batches:
        found = dict(zip(images.files, chain.from_iterable(batches), strict=True))
    sizes = {file: size for file, size in found.items() if not isinstance(size, str)}
    return sizes, {file: reason for file, reason in found.items() if isinstance(reason, str)}


def find_neighbours(samples: Samples, params: Params, data: Prepared, judge: Judge) -> Neighbours:
    """The memorisation check of stage `evaluate` on these samples, with its uncertainty. Held-out images get the samples' class mix."""
    from scipy.stats import betabinom

    runtime, train, heldout = params.runtime.evaluate, data.images(TRAIN), data.images(HELDOUT)
    size, num_workers = runtime.batch_size, runtime.num_workers
    everything = range(len(train))
    originals = judge_images(judge, Pixels(train), everything, size, num_workers, data.params.mirror)
    like = choose_mix(
        samples.class_indices(data.summary.classes), heldout.class_indices.tolist(), params.seed, "memorisation"
    )
    reference = judge_images(judge, Pixels(heldout), like, size, num_workers)
    crops = Crops(samples.folder, samples.files, data.params)
    seen = judge_images(judge, crops, range(len(crops)), size, num_workers)
    found = memorisation(seen.features, [originals.features], reference.features, device=judge.device)
    below = found.table[found.table["distance"] < found.threshold]
    num_below, num_heldout = len(below), len(like)
    num_heldout_below = round(found.heldout_fraction * num_heldout)
    return Neighbours(
        found=found,
        identical=_identical(below, crops, train, size),
        num_samples=len(samples.files),
        num_below=num_below,
        interval=_binomial_interval(num_below, len(samples.files)),
        num_heldout=num_heldout,
        num_heldout_below=num_heldout_below,
        expected_interval=_binomial_interval(num_heldout_below, num_heldout),
        # The limit lies below the next held-out distance, the (h + 1)-th of L. If samples and held-out images come from the same
        # distribution, the share below that order statistic is Beta(h + 1, L - h), so the number among N samples is beta-binomial.
        p_value=float(
            betabinom.sf(num_below - 1, len(samples.files), num_heldout_below + 1, num_heldout - num_heldout_below)
        ),
    )


def _identical(below: pd.DataFrame, crops: Crops, train: ManifestImages, batch_size: int) -> list[bool]:
    """For each of these samples, whether its pixels equal those of its nearest training image."""
    same: list[bool] = []
    for start in range(0, len(below), batch_size):
        rows = below.iloc[start : start + batch_size]
        pixels = crops.__getitems__(rows["sample_index"].tolist())
        same += (pixels == training_views(train, rows["train_index"].tolist())).flatten(1).all(dim=1).tolist()
    return same


def _binomial_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def _write_neighbours(neighbours: Neighbours, samples: Samples, data: Prepared, out: Path) -> None:
    """Writes ``nearest.csv``, nearest first, and ``closest.png``."""
    train, table = data.images(TRAIN), neighbours.found.table
    rows = pd.DataFrame(
        {
            "file": [samples.files[row] for row in table["sample_index"]],
            "distance": table["distance"],
            "nearest_file": [train.paths[row % len(train)] for row in table["train_index"]],
            "is_mirrored": table["train_index"] >= len(train),
            "is_below_limit": table["distance"] < neighbours.found.threshold,
            "is_identical": neighbours.identical + [False] * (len(table) - len(neighbours.identical)),
        }
    )
    rows.to_csv(out / "nearest.csv", index=False)
    closest = table.head(NUM_CLOSEST)
    shown = Crops(samples.folder, samples.files, data.params).__getitems__(closest["sample_index"].tolist())
    picture_nearest(closest, shown, train, out / "closest.png")


def attack_model(workspace: Workspace, params: Params, data: Prepared, inference: Inference) -> Attack:
    """Membership inference by loss on the model in ``results/diffusion``, with equally many training and held-out images."""
    model, seed = DiffusionModel.load(workspace.sampled_model(params)), params.seed
    network = inference.function(inference.place(model.network))
    # Posterior draws that training never saw: an attacker has the image, but not the latent that the model was trained on.
    encode = CompositeEncoder.load(params, workspace.results, derive_seed(seed, "audit/posterior"), inference)
    train, heldout = data.images(TRAIN), data.images(HELDOUT)
    count = min(MAX_ATTACKED, len(train), len(heldout))
    runtime, weight = params.runtime.evaluate, params.diffusion.loss.semantic_weight
    members, others = (
        losses_of_images(
            model, network, encode, images, choose(len(images), count, seed, f"audit/{split}"), runtime, weight, seed
        )
        for split, images in ((TRAIN, train), (HELDOUT, heldout))
    )
    return Attack(count, float(members.mean()), float(others.mean()), separation(members, others, seed))


def _note(workspace: Workspace, samples: Samples, params: Params) -> str:
    """Which model was attacked, and whether it made the samples."""
    attacked = "The attack is on the model in results/diffusion"
    if samples.folder.resolve() == workspace.result("sample").resolve() and _is_current(workspace, "sample", params):
        return f"{attacked}, which made these samples."
    if samples.version is None:
        return f"{attacked}; it is not known whether it made these samples."
    made_by = f"{samples.version[0]} version {samples.version[1]}"
    if not _is_current(workspace, "register", params):
        return (
            f"{attacked}; the samples are of {made_by}. It is not known whether that is the same model, because "
            "results/register is missing or out of date."
        )
    registration = read_registration(workspace)
    version = find_registered(workspace, registration) if registration else None
    if version is None:
        return f"{attacked}, of which MLflow has no version; the samples are of {made_by}. `sfd register` registers it."
    if (version.name, version.version) == samples.version:
        return f"{attacked}, {made_by}, which made these samples."
    return (
        f"{attacked}, {version.name} {version}; the samples are of another model, {made_by}, about which "
        "the attack says nothing."
    )


def _is_current(workspace: Workspace, name: str, params: Params) -> bool:
    try:
        check_current(workspace, (name,), params)
    except UserError:
        return False
    return True
