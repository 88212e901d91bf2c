"""Section ``schedule``: how semantics lead texture."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from sfd.params.types import Fraction, Positive, Section
from sfd.sizes import ModelSize


class TauRange(Section):
    """An offset drawn for every training image, uniform between two limits."""

    low: Fraction
    high: Fraction

    @model_validator(mode="after")
    def _check_order(self) -> "TauRange":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


Tau = Annotated[
    Annotated[Fraction, Tag("number")] | Annotated[TauRange, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, dict | TauRange) else "number"),
]
TAU_TAGS = ("number", "range")
"""What pydantic adds to the place of an error in a value of type Tau."""


class LearntParams(Section):
    """How stage ``schedule`` learns a curve (after arXiv 2606.19662): a network is trained together with the knots, for a short while."""

    probe_steps: Positive = Field(
        10_000, description="steps of that training, with batch and learning rate of `diffusion.training`"
    )
    probe_size: ModelSize | None = Field(
        None, description="size of its network, as `diffusion.model.size`; null: the model's own"
    )
    pieces: int = Field(8, ge=1, le=32, description="pieces of the curve, which has one knot more")
    learning_rate: float = Field(
        0.02, gt=0.0, le=1.0, description="of the knots' logits, with Adam: how far a logit moves in a step"
    )
    energy_weight: float = Field(
        0.02,
        ge=0.0,
        description="weight of the curve's kinetic energy, which is 0 for ordinary diffusion and 1 for one part after the other: the larger it "
        "is, the fewer steps can follow the curve",
    )
    repeats: Positive = Field(
        1, description="curves that are learnt, each from other random draws; their mean is the schedule"
    )


class ScheduleParams(Section):
    """How the two parts move from noise to data."""

    kind: Literal["offset", "sync", "power", "curve", "learnt"] = Field(
        "offset",
        description="`offset`: semantics lead by tau; `sync`: ordinary diffusion with one time; "
        "`power`: t_tex = t_sem ** gamma; `curve`: t_tex is a convex, piecewise linear function of t_sem; `learnt`: a curve that stage `schedule` "
        "learns from the latents",
    )
    tau: Tau = Field(
        0.3,
        description="temporal offset by which semantics lead (`offset`); {low, high}: one model is trained for all offsets between, "
        "and `sample.schedule` says which one to sample with",
    )
    gamma: float = Field(2.0, ge=1.0, le=10.0, description="exponent (`power`); 1: ordinary diffusion")
    knots: tuple[Annotated[float, Field(ge=0.0, le=1e6)], ...] = Field(
        (0.0, 0.75, 0.0, 0.0, 0.25),
        strict=False,
        min_length=2,
        max_length=33,
        description="knot k of 0 to K: the fraction of texture's change that starts at t_sem = k/K and is spread uniformly over the rest "
        "(`curve`); normalised to sum 1",
    )
    learnt: LearntParams | None = Field(None, description="needed by kind `learnt`")

    @property
    def tau_range(self) -> TauRange | None:
        """The offsets that one model is trained for; None: it is trained for a single schedule."""
        return self.tau if self.kind == "offset" and isinstance(self.tau, TauRange) else None

    @model_validator(mode="after")
    def _check_knots(self) -> "ScheduleParams":
        if sum(self.knots) == 0.0:
            raise ValueError("knots are all 0, so texture would never move; set one above 0")
        return self

    @model_validator(mode="after")
    def _check_learnt(self) -> "ScheduleParams":
        if (self.kind == "learnt") != (self.learnt is not None):
            raise ValueError(
                "section learnt is needed by kind `learnt`, and by no other kind: give it, e.g. {probe_steps: 2000}, or set it to null"
            )
        return self
