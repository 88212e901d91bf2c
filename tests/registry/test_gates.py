"""Gates on records made by hand: limits, improvements beyond the error, what is missing, what cannot be compared."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from sfd.errors import UserError
from sfd.params import GateParams
from sfd.registry.gates import GateResult, check_gates, gate_table, unlike_references
from sfd.registry.smoke import Smoke, check_smoke
from sfd.registry.versions import VersionInfo, describe_difference, measured_alike

MEASURED = {"judge": "eye", "judge_digest": "a" * 64, "num_images": "450", "reference": "b" * 64} | {
    "reference_name": "heldout"
}


def record(version: str = "2", **metrics: float) -> VersionInfo:
    time = datetime.fromtimestamp(0, UTC)
    return VersionInfo("digits", version, "run", time, (), metrics, dict(MEASURED), {}, None, {})


def verdict(
    metric: str,
    gate: dict[str, object],
    version: VersionInfo,
    champion: VersionInfo | None = None,
    comparable: bool = True,
    reference: str = "heldout",
) -> GateResult:
    (found,) = check_gates({metric: GateParams.model_validate(gate)}, version, champion, comparable, reference)
    return found


@pytest.mark.parametrize(
    ("metric", "limit", "value", "passes"),
    [
        ("class_accuracy", 0.95, 0.95, True),
        ("class_accuracy", 0.95, 0.9499, False),
        ("memorised_fraction", 0.05, 0.05, True),
        ("memorised_fraction", 0.05, 0.06, False),
        ("fd_eye", 1.0, 0.9, True),
        ("fd_heldout", 1.0, 1.1, False),
        ("class_accuracy", 0.95, float("nan"), False),
    ],
)
def test_a_limit_is_a_floor_or_a_ceiling_as_the_metric_has_it(
    metric: str, limit: float, value: float, passes: bool
) -> None:
    assert verdict(metric, {"limit": limit}, record(**{metric: value})).passed == passes


@pytest.mark.parametrize(
    ("metric", "mine", "theirs", "passes"),
    [
        ("fd_eye", 0.50, 0.60, True),  # the error of the difference is 0.05
        ("fd_eye", 0.56, 0.60, False),
        ("fd_eye", 0.60, 0.60, False),
        ("fd_eye", 0.70, 0.60, False),
        ("class_accuracy", 0.70, 0.60, True),
        ("class_accuracy", 0.64, 0.60, False),
        ("class_accuracy", 0.50, 0.60, False),
    ],
)
def test_an_improvement_must_be_larger_than_the_error_of_the_difference(
    metric: str, mine: float, theirs: float, passes: bool
) -> None:
    version = record(**{metric: mine, f"se_{metric}": 0.03})
    champion = record("1", **{metric: theirs, f"se_{metric}": 0.04})
    found = verdict(metric, {"improve": True}, version, champion)
    assert (found.passed, found.error) == (passes, pytest.approx(0.05))


def test_equal_values_without_error_are_no_improvement() -> None:
    version, champion = record(class_accuracy=1.0, se_class_accuracy=0.0), record("1", class_accuracy=1.0)
    champion.metrics["se_class_accuracy"] = 0.0
    assert not verdict("class_accuracy", {"improve": True}, version, champion).passed


def test_without_a_champion_an_improvement_passes_and_says_so() -> None:
    found = verdict("fd_eye", {"improve": True}, record(fd_eye=9.0, se_fd_eye=1.0))
    assert found.passed and "no champion yet" in found.reason


@pytest.mark.parametrize("gate", [{"limit": 0.9}, {"improve": True}])
def test_a_metric_that_was_not_measured_fails(gate: dict[str, object]) -> None:
    found = verdict("class_accuracy", gate, record(fd_eye=0.1))
    assert not found.passed and found.reason == "not measured"


def test_an_unlike_champion_is_no_measure_but_a_limit_holds_without_it() -> None:
    version, champion = record(fd_eye=0.1, se_fd_eye=0.01), record("1", fd_eye=0.9, se_fd_eye=0.01)
    improved = verdict("fd_eye", {"improve": True}, version, champion, comparable=False)
    assert not improved.passed and improved.champion is None and improved.reason == "cannot be compared"
    assert verdict("fd_eye", {"limit": 0.2}, version, champion, comparable=False).passed


def test_a_gate_with_both_rules_has_a_row_for_each_within_100_columns() -> None:
    gate = GateParams(limit=0.95, improve=True)
    version = record(class_accuracy=0.9, se_class_accuracy=0.0123)
    champion = record("1", class_accuracy=0.98, se_class_accuracy=0.0123)
    rows = gate_table(check_gates({"class_accuracy": gate}, version, champion, True, "heldout")).splitlines()
    assert ">= 0.95" in rows[1] and "FAILS: off by 0.05" in rows[1]
    assert "> champion + error" in rows[2] and "FAILS: worse by 0.08" in rows[2]
    assert max(map(len, rows)) <= 100


ADM = "VIRTUAL_imagenet256_labeled.npz"


@pytest.mark.parametrize("gate", [{"limit": 4.0}, {"improve": True}])
@pytest.mark.parametrize("metric", ["fid", "kid", "fd_heldout", "precision"])
def test_a_number_of_another_reference_passes_no_gate_and_the_references_are_named(
    metric: str, gate: dict[str, object]
) -> None:
    good = {metric: 4.0, f"se_{metric}": 0.01}
    heldout, published = record(**good), record(**good)
    published.measured["reference_name"] = ADM
    for version, named, now, passes in (
        (heldout, None, "heldout", True),
        (heldout, None, ADM, False),
        (heldout, ADM, "heldout", False),
        (published, ADM, "heldout", True),
        (published, "heldout", ADM, False),
    ):
        found = verdict(metric, gate | {"reference": named}, version, reference=now)
        assert (found.passed, found.reason == "other reference") == (passes, not passes)
        said = unlike_references({metric: GateParams.model_validate(gate | {"reference": named})}, version, now)
        assert (metric in said) != passes
        assert passes or (ADM in said[metric] and "heldout" in said[metric] and "evaluate.reference" in said[metric])


def test_a_version_whose_reference_was_not_recorded_passes_only_where_there_is_no_doubt_about_it() -> None:
    old = record(fid=1.0, kid=0.1, fd_eye=0.1, class_accuracy=0.9)
    del old.measured["reference_name"]
    gates = {metric: GateParams(limit=4.0) for metric in ("fid", "kid", "fd_eye", "class_accuracy")}
    assert unlike_references(gates, old, "heldout") == {}  # its judge is not Inception
    old.measured["judge"] = "inception"
    assert set(unlike_references(gates, old, "heldout")) == {"fid", "kid"}
    assert "an older sfd did not record" in unlike_references(gates, old, "heldout")["fid"]
    assert verdict("class_accuracy", {"limit": 0.5}, old).passed
    assert verdict("precision", {"limit": 0.5}, old).reason == "not measured"
    assert describe_difference(old, replace(record("1"), measured=old.measured | {"reference_name": "heldout"})) is None


def test_a_distance_of_another_judge_than_inception_is_always_of_held_out_images() -> None:
    version = record(fd_eye=0.1)
    version = replace(version, measured=version.measured | {"judge": "inception", "reference_name": ADM})
    assert verdict("fd_eye", {"limit": 1.0}, version, reference=ADM).passed
    assert not verdict("fd_eye", {"limit": 1.0, "reference": ADM}, version, reference=ADM).passed


@pytest.mark.parametrize("key", ["judge", "judge_digest", "num_images", "reference"])
def test_what_two_measurements_differ_in_is_named(key: str) -> None:
    other = replace(record("1"), measured=MEASURED | {key: "other"})
    assert describe_difference(record(), record("1")) is None
    said = describe_difference(record(), other)
    assert said is not None and key in said and "other" in said and "version 2 and version 1" in said


def test_a_measurement_without_a_precision_is_of_float32_and_not_compared_with_one_in_bf16() -> None:
    in_fp32, in_bf16 = (replace(record("1"), measured=MEASURED | {"precision": each}) for each in ("fp32", "bf16"))
    assert describe_difference(record(), in_fp32) is None and describe_difference(in_bf16, in_bf16) is None
    said = describe_difference(record(), in_bf16)
    assert said == "version 2 and version 1 were measured differently: precision fp32 and bf16"


EAR = {"judge_digest.ear": "c" * 64, "fdr": "eye, ear"}
OTHER_EAR = EAR | {"judge_digest.ear": "d" * 64}


@pytest.mark.parametrize(
    ("metric", "theirs", "is_comparable"),
    [
        ("fd_eye", EAR, True),
        ("fd_eye", {}, True),
        ("fd_eye", OTHER_EAR, True),
        ("fd_ear", EAR, True),
        ("fd_ear", OTHER_EAR, False),
        ("fdr_ear", OTHER_EAR, False),
        ("fdr", EAR, True),
        ("fdr", OTHER_EAR, False),
        ("fdr", EAR | {"fdr": "eye"}, False),
        ("fdr_eye", OTHER_EAR, True),
    ],
)
def test_judges_beside_the_first_concern_their_own_metrics_alone(
    metric: str, theirs: dict[str, str], is_comparable: bool
) -> None:
    version = replace(record(**{metric: 0.1, f"se_{metric}": 0.01}), measured=MEASURED | EAR)
    champion = replace(record("1", **{metric: 0.9, f"se_{metric}": 0.01}), measured=MEASURED | theirs)
    assert describe_difference(version, champion) is None
    found = verdict(metric, {"improve": True}, version, champion)
    assert found.passed == is_comparable and (found.reason == "cannot be compared") == (not is_comparable)


def test_a_kernel_distance_is_compared_with_that_of_the_same_judge() -> None:
    version = replace(record(), measured=MEASURED | EAR | {"cmmd": "ear"})
    for theirs, alike in (({"cmmd": "ear"}, True), ({"cmmd": "eye"}, False), ({}, False)):
        other = replace(record("1"), measured=MEASURED | EAR | theirs)
        assert measured_alike("cmmd", version, other) == measured_alike("cmmd_heldout", version, other) == alike
        assert measured_alike("fdr", version, other) and describe_difference(version, other) is None


def test_a_version_of_an_older_sfd_cannot_be_compared() -> None:
    said = describe_difference(record(), replace(record("1"), measured={}))
    assert said is not None and "how version 1 was measured is not recorded" in said


def test_the_smoke_compares_pixels_on_the_same_kind_of_device_alone() -> None:
    recorded = Smoke(("0", "1"), "a" * 64, "CPU, AVX2")
    assert "the same pixels" in check_smoke(recorded, recorded)
    elsewhere = check_smoke(recorded, replace(recorded, sha256="b" * 64, device="GPU"))
    assert "not compared (CPU, AVX2; here: GPU)" in elsewhere
    with pytest.raises(UserError, match="pixels differ.*aaaaaaaaaaaa"):
        check_smoke(recorded, replace(recorded, sha256="b" * 64))
    assert Smoke.from_tag(recorded.to_tag()) == recorded


def test_a_metric_that_rests_on_too_few_images_passes_no_rule_whatever_its_value() -> None:
    good = {"precision": 1.0, "se_precision": 0.0, "num_images": 8.0}
    flagged = record(**good, too_few_precision=200.0)
    for gate in ({"limit": 0.5}, {"improve": True}):
        assert verdict("precision", gate, record(**good)).passed
        found = verdict("precision", gate, flagged)
        assert not found.passed and found.reason == "too few images (8, needs 200)"
    assert "FAILS: too few images (8, needs 200)" in gate_table([found])


def test_a_gate_on_accuracy_says_why_it_is_not_measured_where_the_images_have_one_class() -> None:
    alone = replace(record(num_images=450.0), data={"num_classes": "1"})
    assert verdict("class_accuracy", {"limit": 0.5}, alone).reason == (
        "not measured: the images have one class; remove the gate"
    )
    assert verdict("class_accuracy", {"limit": 0.5}, record(num_images=450.0)).reason == "not measured"
