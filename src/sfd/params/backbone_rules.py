"""Rules of ``diffusion.model.backbone`` with other options. As in :mod:`sfd.params.rules`."""

from sfd.params.schema import Params
from sfd.sizes import SIZES_OF

PARTS = ("use_rmsnorm", "use_qknorm", "use_swiglu", "use_rope", "use_shift")
"""Options of LightningDiT. A Flux2 has one form."""


def check_backbone(params: Params) -> None:
    """A backbone has the sizes and the parts that are asked for. Weights from a file bring their backbone."""
    model, learnt = params.diffusion.model, params.schedule.learnt
    if params.diffusion.source == "file":
        return
    asked = {"diffusion.model.size": model.size, "schedule.learnt.probe_size": learnt.probe_size if learnt else None}
    for key, size in asked.items():
        sizes = SIZES_OF.get(model.backbone)
        if size is not None and sizes is not None and size not in sizes:
            raise ValueError(
                f"{key} is `{size}`, but backbone `{model.backbone}` has the sizes {', '.join(sizes)}: choose one of them"
            )
    if model.backbone != "flux2":
        return
    if model.patch_size != 1:
        raise ValueError(
            f"diffusion.model.backbone is `flux2`, which has one token per position: set diffusion.model.patch_size {model.patch_size} to 1"
        )
    off = [name for name in PARTS if not getattr(model, name)]
    if off:
        raise ValueError(
            f"diffusion.model.backbone is `flux2`, which nothing can be left out of: set diffusion.model.{off[0]} to true"
        )
