"""Stage ``reference``: what the judges see of real images, once for all evaluations."""

from collections.abc import Iterable

from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.encoders.texture_vae import load_texture_vae
from sfd.errors import UserError
from sfd.evaluation.comparison import Comparison
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.originals import Originals
from sfd.models.conditions import Condition
from sfd.names import CONDITIONS, load
from sfd.params import JudgeParams, Params
from sfd.pipeline.inference import start_inference
from sfd.pipeline.inputs import digest_facts, published_fingerprint
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.precision import Inference
from sfd.processes import barrier, rank, world_size
from sfd.workspace import Workspace


def load_judges(workspace: Workspace, judges: Iterable[JudgeParams], inference: Inference) -> list[Judge]:
    """The judges that stage ``judge`` made, in this order. Raises :class:`UserError` if one is missing or does not fit."""
    return [inference.place(load_judge(workspace.judge(each.name))) for each in judges]


def open_kept(workspace: Workspace, judges: list[Judge]) -> list[FeatureStore]:
    """What the stage left, by judge. Raises :class:`UserError` if it was left by other judges, or in another precision."""
    return [FeatureStore.opened(workspace.result("reference") / judge.name, judge) for judge in judges]


def planned_classes(params: Params, data: Prepared) -> list[int] | None:
    """The class index of each image that stage ``sample`` will draw, as the parameters say; None if the model is told no class."""
    counts = data.images(TRAIN).class_indices.bincount(minlength=data.num_classes).tolist()
    named: type[Condition] = load(CONDITIONS, params.diffusion.model.condition)
    if named.asked_as != "class":
        return None
    condition = named.from_data(data.summary.classes, counts)
    values = condition.plan(params.sample.num_images, params.sample.class_mix)
    found: list[int] | None = condition.columns(values).get("class_index")
    return found


def find_before(workspace: Workspace, judge: Judge) -> FeatureStore | None:
    """What the stage left of a judge when it last ran, which DVC leaves in its place; None if that was another judge, or precision."""
    folder = workspace.result("reference") / judge.name
    try:
        return FeatureStore.opened(folder, judge)
    except UserError:
        return None


def make_reference(stage: Stage) -> None:
    """Extracts this process's share of the features; process 0 writes what is there.

    Sets of features that would be the same as in the result before are taken from there, so that nothing is extracted again for a judge,
    an option or a texture VAE that concerns other sets.
    """
    params, data = stage.params, open_prepared(stage.workspace, stage.params)
    (inference,) = start_inference(stage, "evaluate")
    vae = inference.place(load_texture_vae(stage.upstream("texture_vae") / "model"))
    size, num_workers = params.runtime.evaluate.batch_size, params.runtime.evaluate.num_workers
    stores = [
        FeatureStore(stage.out / judge.name, judge, size, rank(), world_size(), num_workers)
        for judge in load_judges(stage.workspace, params.judges, inference)
    ]
    for store in stores:
        store.before = find_before(stage.workspace, store.judge)
    comparison = Comparison(data, params.sample.num_images, planned_classes(params, data), params.seed)
    originals = Originals.of(params.evaluate, vae, comparison)
    read = {name: published_fingerprint(stage.workspace, name) for name in ("prepare", "texture_vae")}
    images = digest_facts({"images": read["prepare"], "size": params.data.image_size, "code": stage.facts["code"]})
    originals.fill(stores, [None] * len(stores), images, read["texture_vae"])
    barrier()
    if rank() == 0:
        for store in stores:
            store.finish()
            stage.log({f"num_images/{store.judge.name}/{name}": len(rows) for name, rows in store.rows.items()})
