"""The published results of the runs that the ImageNet presets stand for, each once, with its source."""

from dataclasses import dataclass

from sfd.published.values import CODE, LWD, PAPER


@dataclass(frozen=True)
class Result:
    """FID on ImageNet 256 of one model; 50,000 balanced samples by dopri5 against ADM's reference batch.

    Attributes:
        model: its published name.
        preset: the preset that trains it; None: there is none.
        steps: of training, batch 256.
        unguided, guided: FID on the first of ``machines`` and on the second; None: not reported.
        weak: the weak model of AutoGuidance and its scale, in words; empty without guidance.
        machines: on which it was trained and sampled.
        source: where the numbers stand.
    """

    model: str
    preset: str | None
    steps: int
    unguided: tuple[float | None, float | None]
    guided: tuple[float | None, float | None]
    weak: str
    machines: tuple[str, str]
    source: str

    @property
    def epochs(self) -> int:
        """Passes over ImageNet, as papers count them."""
        return round(self.steps / 5000)


ON_BOTH, IN_PAPER = ("16 NPUs", "8 A100"), ("the paper's", "")
BOTH = f"{PAPER} (NPU) and its repository (A100)"

RESULTS = (
    Result("SFD-XL", "imagenet256-sfd-xl", 400_000, (3.43, 3.50), (1.30, 1.29), "B, 70,000 steps, 1.6", ON_BOTH, BOTH),
    Result(
        "SFD-XL", "imagenet256-sfd-xl", 4_000_000, (2.54, 2.66), (1.06, 1.03), "B, 70,000 steps, 1.5", ON_BOTH, BOTH
    ),
    Result(
        "SFD-XL, second recipe",
        "imagenet256-sfd-xl-lr2e-4",
        400_000,
        (None, 3.23),
        (None, 1.38),
        "B, 60,000 steps, 1.5",
        ("", "8 H20"),
        CODE,
    ),
    Result(
        "SFD-1.0B", "imagenet256-sfd-1p0b", 400_000, (2.84, 2.92), (1.19, 1.20), "B, 60,000 steps, 1.5", ON_BOTH, BOTH
    ),
    Result(
        "SFD-1.0B",
        "imagenet256-sfd-1p0b",
        4_000_000,
        (2.38, 2.36),
        (1.04, 1.04),
        "B, 120,000 steps, 1.5",
        ON_BOTH,
        BOTH,
    ),
    Result("SFD-L", "imagenet256-sfd-l", 400_000, (3.89, None), (None, None), "", IN_PAPER, PAPER),
    Result("SFD-B", "imagenet256-sfd-b", 400_000, (10.40, None), (None, None), "", IN_PAPER, PAPER),
    Result(
        "LightningDiT-XL/1", "imagenet256-lightningdit-xl", 400_000, (9.29, None), (None, None), "", IN_PAPER, PAPER
    ),
    Result(
        "LightningDiT-XL/1", "imagenet256-lightningdit-xl", 4_000_000, (6.50, None), (None, None), "", IN_PAPER, PAPER
    ),
    Result(
        "LightningDiT-XL/1 + REPA",
        "imagenet256-lightningdit-xl-repa",
        400_000,
        (6.94, None),
        (None, None),
        "",
        IN_PAPER,
        PAPER,
    ),
    Result(
        "LightningDiT-XL/1 + REPA",
        "imagenet256-lightningdit-xl-repa",
        4_000_000,
        (5.84, None),
        (None, None),
        "",
        IN_PAPER,
        PAPER,
    ),
    Result("LWD-XL", "imagenet256-lwd-xl", 400_000, (2.87, None), (1.14, None), "AutoGuidance", IN_PAPER, LWD),
    Result("LWD-XL", "imagenet256-lwd-xl", 1_000_000, (2.37, None), (1.05, None), "AutoGuidance", IN_PAPER, LWD),
    Result("LWD-XL", "imagenet256-lwd-xl", 3_000_000, (2.14, None), (1.02, None), "AutoGuidance", IN_PAPER, LWD),
)
