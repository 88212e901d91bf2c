"""Rules between options: what does not fit is refused with a reason, and what fits is accepted."""

from typing import Any

import pytest
from changed_params import BOTH, ENCODER, changed, refusal

from sfd.params import Params, parse_params

PLAIN = {
    "semantic.kind": "none",
    "schedule.kind": "sync",
    "sample.guidance.scale_semantic": 1,
    "latents.store_features": False,
    "diffusion.loss.repa_weight": 0,
}
"""Texture alone, by itself."""
PRETRAINED_JUDGE = {
    "judges.0.kind": "inception",
    "judges.0.source": "pretrained",
    "judges.0.name": "inception",
    "judges.0.training": None,
}
CLIP: dict[str, Any] = {
    "judges": [
        BOTH["judges"][0],
        {"kind": "clip", "source": "pretrained", "name": "clip", "model": "openai/clip-vit-base-patch32"},
    ]
}
SPARSE = {"first_blocks": 1, "last_blocks": 1, "full_token_steps": 200}
PATH_DROP = {"diffusion.sparse_deep": SPARSE, "sample.guidance.kind": "path_drop"}
ODD_GRID = {"data.image_size": 24, "encoder.input_size": 24}
"""Of the digits' 8 pixels per position: 3 along one side."""
FID_GATE = {"register.gates": {"fid": {"limit": 4.0, "improve": True}}}
TIMM_JUDGE = {
    "judges.0.kind": "timm",
    "judges.0.source": "package",
    "judges.0.model": "tf_efficientnet_lite1",
    "judges.0.training": None,
}
CFG = {"sample.guidance.kind": "cfg", "sample.guidance.scale_texture": 1.5}
WARM = {"diffusion.training.warmup_steps": 10}
NO_CONDITION = {
    "diffusion.model.condition": "none",
    "diffusion.model.class_dropout": 0,
    "sample.guidance": {},
    "register.gates": {"class_accuracy_heldout": {"limit": 0.9}},
}
"""A model that is told nothing, by itself."""


PLACED = {"sample.times": [0.0, 0.4], "sample.num_steps": 2}
LEARNT: dict[str, Any] = {
    "schedule.kind": "learnt",
    "schedule.learnt": {},
    "diffusion.loss.timestep_sampling": "per_part",
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (PLACED | {"sample.times": [0.1, 0.5]}, ["times begin with 0.1", "begin with 0"]),
        (PLACED | {"sample.times": [0.0, 0.5, 0.5]}, ["times must increase, but 0.5 follows 0.5"]),
        (PLACED | {"sample.num_steps": 3}, ["times are 2, but num_steps is 3", "set num_steps to 2"]),
        (PLACED | {"sample.times": [0.0, 1.0]}, ["less than 1"]),
        (PLACED | {"sample.timestep_shift": 0.5}, ["so does timestep_shift 0.5", "times to null"]),
        (PLACED | {"sample.rule": "published"}, ["times need rule `exact`"]),
        (PLACED | {"sample.sampler": "dopri5"}, ["sampler `dopri5` chooses its own"]),
        (
            {"data.image_size": 64},
            ["share one grid", "data.image_size 64 / 8 = 8", "= 4", "set encoder.input_size to 64"],
        ),
        ({"data.revision": "main"}, ["`data`: revision is 'main'", "source is `digits`", "null"]),
        ({"data.layout": "flat"}, ["`data`: layout is 'flat'", "only `folder` reads it"]),
        ({"data.labels": "labels.csv"}, ["`data`: labels is 'labels.csv'", "set labels to null"]),
        (
            {"data.source": "folder", "data.layout": "classes", "data.labels": "labels.csv"},
            ["layout is `classes`", "'labels.csv' gives the classes, too"],
        ),
        ({"data.image_column": "label"}, ["`data`: image_column and label_column are both 'label'"]),
        ({"encoder.input_size": 30}, ["encoder.input_size 30", "encoder.patch_size 8"]),
        ({"encoder.num_heads": 5}, ["encoder.width 96", "encoder.num_heads 5"]),
        ({"semantic.num_heads": 3}, ["semantic.width 128", "semantic.num_heads 3"]),
        ({"semantic.training": None}, ["kind is `semvae`", "semantic.training must be given"]),
        ({"semantic.source": "file"}, ["semantic.source is `file`, so semantic.file must name the weights"]),
        ({"semantic.file": "vae"}, ["semantic.file is 'vae'", "`train`", "null"]),
        (
            PLAIN | {"semantic.source": "file", "semantic.file": "vae"},
            ["semantic.kind is `none`, so semantic.source must be `train`"],
        ),
        (
            {"latents.quadrants": True},
            ["share one grid", "= 4, but 2 quadrants * encoder.input_size 32", "= 8; set encoder.input_size to 16"],
        ),
        (
            {"latents.quadrants": True, "data.image_size": 31},
            ["latents.quadrants cuts images into quarters", "data.image_size 31 must be even"],
        ),
        (
            {"semantic.kind": "pca", "semantic.latent_channels": 97},
            ["latent_channels 97 must be at most encoder.width 96"],
        ),
        (PLAIN | {"schedule.kind": "offset"}, ["kind is `none`", "must be `sync`, not `offset`"]),
        (PLAIN | {"sample.guidance.scale_semantic": 1.25}, ["kind is `none`", "scale_semantic must be 1"]),
        (PLAIN | {"sample.guidance.start_semantic": 0.1}, ["kind is `none`", "start_semantic 0"]),
        (PLAIN | {"sample.guidance.end_semantic": 0.9}, ["kind is `none`", "end_semantic 1"]),
        (
            {"sample.guidance.start_texture": 0.5, "sample.guidance.end_texture": 0.4},
            ["end_texture 0.4 is below start_texture 0.5", "raise the end"],
        ),
        (PLAIN | {"encoder.source": "none", "data.image_size": 36}, ["data.image_size 36 must be a multiple of 8"]),
        (
            PLAIN | {"encoder.source": "none", "data.image_size": 40, "diffusion.model.patch_size": 2},
            ["grid 5 (data.image_size / 8)", "patch_size 2"],
        ),
        ({"encoder.source": "none"}, ["encoder.source is `none`, but semantic.kind is `semvae`"]),
        (
            PLAIN | {"encoder.source": "none", "latents.store_features": True},
            ["encoder.source is `none`, but latents.store_features is true"],
        ),
        (
            {"encoder.source": "none", "encoder.file": "vit.pth"},
            ["encoder.file is 'vit.pth'", "`none`", "reads no file"],
        ),
        ({"encoder.source": "file"}, ["encoder.file must name"]),
        (
            {"encoder.source": "package", "encoder.name": "resnet18"},
            ["no package with weights of encoder.name resnet18", "tf_efficientnet_lite0", "`pretrained` or `file`"],
        ),
        ({"texture_vae.source": "pretrained"}, ["texture_vae.name must be given"]),
        ({"texture_vae.file": "vae"}, ["texture_vae.file is 'vae'", "`train`", "null"]),
        (
            {"texture_vae.source": "pca", "texture_vae.latent_channels": 193},
            ["latent_channels 193 must be at most 3 * texture_vae.block_size^2 = 192"],
        ),
        ({"texture_vae.source": "pca", "texture_vae.block_size": 4}, ["share one grid", "data.image_size 32 / 4 = 8"]),
        ({"texture_vae.source": "pcs"}, ["nearest: 'pca'"]),
        (
            {"texture_vae.source": "pca", "texture_vae.block_size": 9, "texture_vae.latent_channels": 8},
            ["block_size 9 must be even where texture_vae.training is given"],
        ),
        (
            {"texture_vae.source": "pca", "texture_vae.training": None, "texture_vae.perceptual_weight": 0.5},
            ["perceptual_weight is 0.5", "source `pca` trains nothing here", "or give texture_vae.training"],
        ),
        (
            {"texture_vae.source": "file", "texture_vae.file": "vae", "texture_vae.adversarial_weight": 0.1},
            ["adversarial_weight is 0.1", "source `file` trains nothing here: set it to 0"],
        ),
        (
            PLAIN | {"encoder.source": "none", "texture_vae.perceptual_weight": 1.0},
            ["perceptual_weight is 1", "encoder.source is `none`", "choose an encoder"],
        ),
        (
            {"texture_vae.source": "pca", "texture_vae.alignment.weight": 0.1},
            [
                "alignment.weight is 0.1",
                "the latent of texture_vae.source `pca` is not trained here",
                "or the source to `train`",
            ],
        ),
        (
            PLAIN | {"encoder.source": "none", "encoder.training": None, "texture_vae.alignment.weight": 0.1},
            ["alignment.weight is 0.1", "encoder.source is `none`", "or choose an encoder"],
        ),
        (
            {"texture_vae.alignment.weight": 0.1, "texture_vae.training.accumulation_steps": 2},
            ["adaptive, a ratio over the whole batch", "accumulation_steps is 2: set it to 1", "adaptive to false"],
        ),
        (
            {"texture_vae.alignment.weight": 0.1, "runtime.texture_vae.compile": True},
            ["adaptive, which goes back", "runtime.texture_vae.compile is true", "adaptive to false"],
        ),
        (
            {
                "texture_vae.alignment.weight": 0.1,
                "texture_vae.alignment.cosine_weight": 0.0,
                "texture_vae.alignment.distance_weight": 0.0,
            },
            ["weight is 0.1, but cosine_weight and distance_weight are 0", "set weight to 0"],
        ),
        ({"judges.0.training": None}, ["judges.0.training must be given"]),
        ({"diffusion.source": "file"}, ["diffusion.file must name the weights"]),
        ({"diffusion.file": "weights"}, ["diffusion.file is 'weights'", "`train`, which reads no file"]),
        (PRETRAINED_JUDGE | {"judges.0.name": "v3"}, ["judges.0.name is 'v3'", "call it `inception`"]),
        (
            PRETRAINED_JUDGE | {"judges.0.source": "train"},
            ["judges.0.source is `train`, so judges.0.training must be given"],
        ),
        (
            {"judges.0.kind": "inception", "judges.0.name": "inception"},
            ["judges.0.kind is `inception`", "judges.0.source is `train`", "`pretrained` or `file`"],
        ),
        (
            {"judges.0.source": "pretrained", "judges.0.training": None},
            ["judges.0.kind is `resnet`, which has no published weights", "judges.0.source is `pretrained`", "`train`"],
        ),
        (
            {"judges.0.source": "file", "judges.0.file": "w.pth"},
            ["judges.0.kind is `resnet`", "judges.0.source is `file`"],
        ),
        (
            PRETRAINED_JUDGE | {"judges.0.source": "file", "judges.0.file": "w.pth", "judges.0.name": "v3"},
            ["judges.0.name is 'v3'", "call it `inception`"],
        ),
        (PRETRAINED_JUDGE | {"judges.0.file": "w.pth"}, ["judges.0.file is 'w.pth'", "`pretrained`"]),
        (TIMM_JUDGE | {"judges.0.model": None}, ["judges.0.kind is `timm`, so judges.0.model must name"]),
        (
            TIMM_JUDGE | {"judges.0.model": "resnet18"},
            ["no package with weights of judges.0.model resnet18", "judges.0.source"],
        ),
        (TIMM_JUDGE | {"judges.0.source": "pretrained", "judges.0.file": "w.pth"}, ["judges.0.file is 'w.pth'"]),
        (
            {"judges.0.kind": "timm", "judges.0.model": "resnet18"},
            ["judges.0.kind is `timm`", "judges.0.source is `train`", "`package`"],
        ),
        (
            TIMM_JUDGE
            | {"encoder.source": "package", "encoder.name": "tf_efficientnet_lite1", "encoder.training": None},
            [
                "judges.0.model is tf_efficientnet_lite1, with the weights of the encoder",
                "choose another judges.0.model",
            ],
        ),
        (
            PRETRAINED_JUDGE | {"judges.0.source": "package"},
            ["judges.0.kind is `inception`", "judges.0.source is `package`"],
        ),
        ({"judges.0.name": "inception"}, ["`inception` is kept for Inception-v3"]),
        ({"judges.0.name": "heldout"}, ["'heldout' is taken", "fd_heldout"]),
        ({"judges.0.name": "reconstruction"}, ["'reconstruction' is taken", "fd_reconstruction"]),
        ({"judges.0.name": "my_heldout"}, ["'my_heldout' is taken", "`fd_my_heldout` is a floor"]),
        ({"judges.0.name": "curves.json"}, ["'curves.json' is that of a file"]),
        (BOTH | {"judges.1.name": "digits_judge"}, ["two are called `digits_judge`", "choose other names"]),
        (BOTH | {"judges.1.name": "a_reconstruction"}, ["judges.1.name 'a_reconstruction' is taken"]),
        (BOTH | {"judges.1.model": None}, ["judges.1.kind is `timm`, so judges.1.model must name"]),
        (BOTH | {"judges.1.source": "file"}, ["judges.1.source is `file`, so judges.1.file must name"]),
        (BOTH | {"register.gates": {"fd_ear": {"limit": 1}}}, ["judges `digits_judge`, `eye` give no metric `fd_ear`"]),
        (BOTH | ENCODER | {"register.gates": {"fd_eye": {"limit": 1}}}, ["fd_eye", "by the encoder", "reporting only"]),
        (BOTH | ENCODER | {"register.gates": {"fdr_eye": {"limit": 1}}}, ["fdr_eye", "by the encoder"]),
        (BOTH | ENCODER | {"register.gates": {"fdr": {"limit": 1}}}, ["no metric `fdr`"]),
        ({"register.gates": {"fdr": {"limit": 1}}, "judges": BOTH["judges"][:1]}, ["no metric `fdr`"]),
        (
            CLIP | {"judges.1.source": "package"},
            ["judges.1.kind is `clip`", "is `package`", "`pretrained`"],
        ),
        (CLIP | {"judges.1.model": None}, ["judges.1.kind is `clip`, so judges.1.model must name a CLIP"]),
        ({"evaluate.cmmd": "digits_judge"}, ["evaluate.cmmd is `digits_judge`", "no judge of kind `timm`", "to null"]),
        (BOTH | {"evaluate.cmmd": "eyes"}, ["evaluate.cmmd is `eyes`", "the nearest is `eye`"]),
        (BOTH | ENCODER | {"evaluate.cmmd": "eye"}, ["there is none: add one"]),
        ({"evaluate.memorisation": False}, ["register.gates.memorised_fraction needs evaluate.memorisation"]),
        (
            {"evaluate.density": False, "register.gates": {"coverage": {"limit": 0.5}}},
            ["no metric `coverage`"],
        ),
        ({"latents.store_features": False}, ["repa_weight", "latents.store_features must be true", "`decoded`"]),
        ({"diffusion.lora": {"rank": 4}}, ["diffusion.lora adapts a trained model", "init_from is null"]),
        (
            {"diffusion.token_routing": {}},
            ["first_blocks 2 and last_blocks 4 leave none of the 4 blocks", "size tiny", "set token_routing to null"],
        ),
        (
            {"diffusion.source": "file", "diffusion.file": "weights", "diffusion.token_routing": {"last_blocks": 1}},
            ["diffusion.source is `file`", "diffusion.token_routing must be null"],
        ),
        ({"diffusion.sparse_deep": {"full_token_steps": 0}}, ["diffusion.sparse_deep", "leave none of the 4 blocks"]),
        ({"diffusion.sparse_deep": SPARSE | {"share": 0.6}}, ["diffusion.sparse_deep.share", "multiple of 0.25"]),
        (
            {"diffusion.sparse_deep": SPARSE | {"full_token_steps": 4000}},
            ["full_token_steps 4000 is more than diffusion.training.num_steps 3200", "lower it"],
        ),
        (
            {"diffusion.sparse_deep": SPARSE, "diffusion.token_routing": {"first_blocks": 1, "last_blocks": 1}},
            ["token_routing and diffusion.sparse_deep both", "set one of them to null"],
        ),
        (
            {"diffusion.sparse_deep": SPARSE, "diffusion.loss.repa_projector": "conv"},
            [
                "`conv`, which needs all tokens, but block repa_depth 2 sees a part",
                "repa_depth to at most first_blocks 1",
            ],
        ),
        (
            ODD_GRID | {"diffusion.sparse_deep": SPARSE},
            ["groups of 2 x 2, but there are 3 along one side", "which is odd"],
        ),
        (
            {"sample.guidance.kind": "path_drop"},
            ["sample.guidance.kind is `path_drop`", "diffusion.sparse_deep must be given"],
        ),
        (
            {"sample.guidance.kind": "path_drop", "diffusion.sparse_deep": SPARSE | {"path_drop": 0.0}},
            ["its path_drop be above 0"],
        ),
        (
            PATH_DROP | {"diffusion.model.class_dropout": 0.0},
            ["`path_drop`, whose weak velocity has the null class", "class_dropout must be above 0"],
        ),
        (
            WARM | {"diffusion.source": "file", "diffusion.file": "weights", "diffusion.init_from": "a model"},
            ["diffusion.source is `file`", "set source to `train`"],
        ),
        (
            WARM | {"diffusion.init_from": "a model", "diffusion.lora": {}, "runtime.diffusion.sharding": "fsdp"},
            ["diffusion.lora", "set sharding to `ddp`"],
        ),
        (
            {"diffusion.training.optimizer": "muon", "runtime.diffusion.sharding": "fsdp"},
            ["diffusion.training.optimizer is `muon`", "sharding is `fsdp`", "sharding to `ddp`", "`adamw`"],
        ),
        (
            WARM | {"diffusion.init_from": "a model", "diffusion.lora": {}, "diffusion.training.optimizer": "muon"},
            ["diffusion.training.optimizer is `muon`", "diffusion.lora", "`adamw`", "lora to null"],
        ),
        (
            PLAIN | {"diffusion.loss.repa_weight": 1.0, "diffusion.loss.repa_target": "decoded"},
            ["repa_target is `decoded`", "semantic.kind is `none`", "`stored`"],
        ),
        (WARM | {"diffusion.init_from": "models:/sfd"}, ["'models:/sfd' is no address", "models:/NAME@ALIAS"]),
        (WARM | {"diffusion.init_from": "models:/sfd/0"}, ["is no address"]),
        (
            WARM | {"diffusion.init_from": "results/diffusion/model"},
            ["DVC removes results/diffusion", "copy the model"],
        ),
        (
            {"diffusion.init_from": "models/b", "diffusion.training.warmup_steps": 0},
            ["init_from is set", "warmup_steps must be above 0"],
        ),
        ({"diffusion.loss.repa_depth": 5}, ["repa_depth is 5", "size tiny has 4 blocks"]),
        ({"diffusion.model.patch_size": 2}, ["repa_weight", "patch_size 2 to 1"]),
        (
            {f"diffusion.loss.{term}_weight": 0 for term in ("velocity", "cosine", "repa")},
            ["velocity_weight, cosine_weight and repa_weight are all 0"],
        ),
        (
            {"semantic.training.warmup_steps": 0, "semantic.training.warmup_from": 0.01},
            ["semantic.training", "warmup_from is 0.01", "warmup_steps is 0"],
        ),
        (
            {"judges.0.training.decay": "constant", "judges.0.training.decay_start": 100},
            ["decay_start is 100", "decay is `constant`", "decay_start to null"],
        ),
        (
            {"judges.0.training.decay": "constant", "judges.0.training.decay_to": 0.1},
            ["decay_to is 0.1", "decay is `constant`", "decay_to to 0"],
        ),
        (
            {"judges.0.training.decay_start": 400},
            ["decay_start 400 must be from warmup_steps 50 to below num_steps 400"],
        ),
        ({"judges.0.training.decay_start": 49}, ["decay_start 49 must be from warmup_steps 50"]),
        ({"sample.guidance.kind": "autoguidance"}, ["weak_model is needed"]),
        ({"sample.guidance.weak_model": "models/b"}, ["weak_model is needed", "no other kind"]),
        ({"sample.guidance.kind": "none"}, ["kind is `none`", "scales must be 1"]),
        (CFG | {"diffusion.model.class_dropout": 0}, ["class_dropout must be above 0"]),
        ({"register.gates": {"fd_digit_judge": {"limit": 1.0}}}, ["no metric `fd_digit_judge`", "`fd_digits_judge`"]),
        ({"register.gates": {"fid": {"limit": 1.0}}}, ["judges `digits_judge`, `second_judge` give no metric `fid`"]),
        ({"judges.0.name": "eye"}, ["no metric `fd_digits_judge`"]),
        ({"register.gates": {"kid": {"improve": True}}}, ["kid.improve", "standard error (fd_digits_judge", "limit"]),
        ({"register.gates": {"fd_heldout": {"improve": True}}}, ["fd_heldout.improve", "standard error"]),
        ({"register.gates": {"recall": {"limit": None}}}, ["a gate needs a limit, or improve: true"]),
        (
            {"register.gates": {"recall": {"limits": 0.5}}},
            ["unknown key `register.gates.recall.limits`", "recall.limit`"],
        ),
        (PRETRAINED_JUDGE | {"register.gates": {"class_accuracy": {"limit": 0.9}}}, ["no metric `class_accuracy`"]),
        (
            {"evaluate.reference": "ref.npz"},
            ["evaluate.reference is 'ref.npz'", "the first judge is `digits_judge`", "to null"],
        ),
        (NO_CONDITION | {"diffusion.model.class_dropout": 0.1}, ["nothing to drop", "class_dropout 0.1 to 0"]),
        (NO_CONDITION | {"sample.guidance": {"kind": "cfg", "scale_texture": 2}}, ["null condition", "`autoguidance`"]),
        (
            NO_CONDITION | {"register.gates": {"class_accuracy": {"limit": 0.9}}},
            ["register.gates.class_accuracy", "condition is `none`", "remove the gate"],
        ),
        ({"register.gates": {"sfid": {"limit": 9.0}}}, ["judges `digits_judge`, `second_judge` give no metric `sfid`"]),
        (PRETRAINED_JUDGE | {"register.gates": {"sfid": {"improve": True}}}, ["sfid.improve", "limit"]),
        ({"register.alias": "champion"}, ["alias `champion`", "`sfd models promote`"]),
        ({"register.alias": "previous"}, ["alias `previous`"]),
        ({"schedule.kind": "learnt"}, ["section learnt is needed by kind `learnt`", "{probe_steps: 2000}"]),
        ({"schedule.learnt": {}}, ["section learnt is needed by kind `learnt`, and by no other"]),
        ({"schedule.kind": "learnt", "schedule.learnt": {}}, ["timestep_sampling must be `per_part`"]),
        (LEARNT | {"diffusion.loss.velocity_weight": 0.0}, ["velocity_weight must be above 0"]),
        (
            LEARNT | {"diffusion.source": "file", "diffusion.file": "weights"},
            ["diffusion.source is `file`", "give that one"],
        ),
        (LEARNT | {"sample.schedule": {"kind": "offset", "tau": 0.3}}, ["sample.schedule differs from schedule"]),
        (
            {"schedule.tau": {"low": 0.0, "high": 1.0}, "sample.schedule": {"kind": "learnt", "learnt": {}}},
            ["sample.schedule cannot be of kind `learnt`"],
        ),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], named: list[str]) -> None:
    message = refusal(changes)
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        PLACED,
        PLACED | {"sample.sampler": "heun"},
        {"data.image_size": 64, "encoder.input_size": 64},
        {"semantic.kind": "pca", "semantic.training": None, "semantic.latent_channels": 96, "semantic.num_heads": 3},
        {"semantic.kind": "pca", "schedule.kind": "sync"},
        LEARNT,
        LEARNT
        | {"schedule.learnt": {"probe_size": "B", "repeats": 3}, "semantic.kind": "pca", "semantic.training": None},
        PLAIN,
        PLAIN | {"semantic.training": None, "diffusion.loss.repa_weight": 1, "latents.store_features": True},
        PLAIN | {"encoder.source": "none", "encoder.training": None, "data.image_size": 40},
        PLAIN
        | {"encoder.source": "none", "texture_vae.source": "file", "texture_vae.file": "vae", "data.image_size": 36},
        {"data.source": "huggingface", "data.root": "owner/name", "data.revision": "main", "data.split": "train+test"},
        {"data.source": "tar", "data.root": "shards"},
        {"data.source": "folder", "data.layout": "flat", "data.labels": "labels.csv"},
        {"encoder.source": "file", "encoder.file": "vit.safetensors", "encoder.training": None},
        {"encoder.source": "package", "encoder.name": "tf_efficientnet_lite0", "encoder.training": None},
        TIMM_JUDGE | {"encoder.source": "package", "encoder.name": "tf_efficientnet_lite0", "encoder.training": None},
        TIMM_JUDGE | {"judges.0.source": "file", "judges.0.file": "w.pth", "judges.0.model": "resnet18"},
        {"texture_vae.source": "file", "texture_vae.file": "vae", "data.image_size": 64},
        {"texture_vae.source": "pca", "texture_vae.latent_channels": 192, "texture_vae.training": None},
        {"texture_vae.source": "pca", "texture_vae.block_size": 16, "data.image_size": 64},
        {"texture_vae.source": "pca", "texture_vae.perceptual_weight": 0.5},
        {"texture_vae.perceptual_weight": 0.5, "texture_vae.adversarial_weight": 0.1},
        {"texture_vae.alignment.weight": 0.1, "texture_vae.alignment.cosine_weight": 0.0},
        {
            "texture_vae.alignment.weight": 0.1,
            "texture_vae.alignment.adaptive": False,
            "texture_vae.training.accumulation_steps": 2,
            "runtime.texture_vae.compile": True,
        },
        BOTH | {"register.gates": {"fd_eye": {"limit": 1}, "fdr": {"improve": True}, "fdr_eye": {"improve": True}}},
        BOTH | ENCODER,
        BOTH | {"evaluate.cmmd": "eye", "register.gates": {"cmmd": {"limit": 1.0}}},
        CLIP | {"evaluate.cmmd": "clip"},
        CLIP | {"judges.1.source": "file", "judges.1.file": "clip", "judges.1.model": None},
        {"evaluate.density": True, "register.gates": {"coverage": {"limit": 0.5}, "density_heldout": {"limit": 0.5}}},
        {"evaluate.memorisation": False, "register.gates": {}},
        PRETRAINED_JUDGE | FID_GATE,
        PRETRAINED_JUDGE | FID_GATE | {"judges.0.source": "file", "judges.0.file": "w.pth"},
        PRETRAINED_JUDGE | FID_GATE | {"evaluate.reference": "VIRTUAL_imagenet256_labeled.npz"},
        PRETRAINED_JUDGE | {"register.gates": {"sfid": {"limit": 9.0}}},
        {"register.gates": {}},
        {"register.gates": {"kid": {"limit": 0.01}, "fd_heldout": {"limit": 1}, "recall": {"improve": True}}},
        {"latents.store_features": False, "diffusion.loss.repa_weight": 0},
        {"latents.store_features": False, "diffusion.loss.repa_target": "decoded"},
        WARM | {"diffusion.init_from": "../other/results/diffusion/model"},
        WARM | {"diffusion.init_from": "models:/sfd@champion", "diffusion.lora": {}},
        WARM | {"diffusion.init_from": "models:/sfd/12", "diffusion.init_statistics": "new"},
        {"diffusion.model.patch_size": 2, "diffusion.loss.repa_weight": 0},
        {"diffusion.token_routing": {"first_blocks": 1, "last_blocks": 2}},
        {"diffusion.token_routing": {}, "diffusion.model.size": "S"},
        {"diffusion.sparse_deep": SPARSE},
        ODD_GRID,
        {"diffusion.sparse_deep": SPARSE, "diffusion.loss.repa_projector": "conv", "diffusion.loss.repa_depth": 1},
        {"diffusion.token_routing": {"last_blocks": 1}, "diffusion.loss.repa_projector": "conv"},
        PATH_DROP,
        PATH_DROP | {"diffusion.model.condition": "none", "diffusion.model.class_dropout": 0.0, "register.gates": {}},
        {"diffusion.source": "file", "diffusion.file": "weights", "sample.guidance.kind": "path_drop"},
        {"diffusion.training.optimizer": "muon", "diffusion.training.weight_decay": 0.1},
        WARM | {"diffusion.init_from": "a model", "diffusion.training.optimizer": "muon"},
        {"diffusion.loss.repa_projector": "conv", "diffusion.loss.repa_target_norm": "tokens"},
        {"diffusion.loss.velocity_weight": 0, "diffusion.loss.cosine_weight": 0},
        {"sample.guidance.kind": "autoguidance", "sample.guidance.weak_model": "models/b"},
        {"judges.0.training.decay_start": 50, "judges.0.training.decay_to": 0.1, "judges.0.training.warmup_from": 0.01},
        {"judges.0.training.decay": "constant", "judges.0.training.warmup_from": 0.0},
        {"diffusion.loss.repa_loss": "cosine_mse", "diffusion.loss.cosine_floor": 1e-8},
        CFG,
        NO_CONDITION,
        NO_CONDITION | {"sample.guidance": {"kind": "autoguidance", "weak_model": "models/b", "scale_texture": 2}},
        {"register.gates": {"class_accuracy": {"limit": 0.9}}},
        {"schedule.kind": "sync"},
        {"semantic.source": "file", "semantic.file": "weights/vae", "semantic.training": None},
        {"semantic.source": "file", "semantic.file": "weights/pca", "semantic.kind": "pca"},
        {"latents.quadrants": True, "encoder.input_size": 16, "latents.semantic_posterior": "sample"},
        {"diffusion.source": "file", "diffusion.file": "weights"},
    ],
)
def test_options_that_fit_each_other_are_accepted(changes: dict[str, Any]) -> None:
    assert isinstance(parse_params(changed(changes)), Params)
