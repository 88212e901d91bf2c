"""What README.md and docs/ say is what the code does. No command is run here; tests/test_end_to_end.py runs two pages."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs_commands import Block, blocks, simple_commands, spans, tokens
from packaging.specifiers import SpecifierSet
from support import REPOSITORY

from sfd import cli
from sfd.params import describe_params
from sfd.pipeline.inputs import STAGES
from sfd.pipeline.stage import PARALLEL

README = REPOSITORY / "README.md"
DISTRIBUTED = REPOSITORY / "docs" / "distributed.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
ROOT: Any = typer.main.get_command(cli.app)
OTHER_PROGRAMS = {"cat", "cd", "curl", "export", "git", "mlflow", "pip", "sed", "source"}
"""Programs that pages show and that need no check here."""

FILE_ENDINGS = {".json", ".parquet", ".png", ".yaml"}
"""What tells the name of a file, such as `features.png`, from that of an option."""

EXAMPLE_FILES = {
    "src/sfd/data/sources/csv_file.py",
    "src/sfd/diffusion/samplers/midpoint.py",
    "src/sfd/diffusion/terms/absolute.py",
    "src/sfd/encoders/judges/torchvision_model.py",
    "src/sfd/encoders/semantic/first_channels.py",
    "src/sfd/encoders/tokenizers/mean_colour.py",
    "src/sfd/models/coarse.py",
    "src/sfd/models/convnet.py",
}
"""Files that docs/extending.md asks its reader to write."""
EXAMPLE_OPTIONS = {"diffusion.loss.absolute_weight"}
"""Options that it asks for."""

all_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def bash_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page, "bash")]


def option_names() -> list[str]:
    """The names in the generated table, those of every network and those of `sample.schedule` written out."""
    names = re.findall(r"^\| `([\w.]+)`", describe_params(), re.MULTILINE)
    networks = ("encoder", "text", "texture_vae", "judge", "judges.N", "semantic", "diffusion")
    names += [name.replace("NETWORK", network) for name in names if "NETWORK" in name for network in networks]
    return [*names, *(f"sample.{name}" for name in names if name.startswith("schedule."))]


def is_option(key: str, names: list[str]) -> bool:
    """Whether ``key`` is an option, or a section of options. KEY in a name stands for any dotted key."""
    patterns = [re.sub(r"\bN\b", r"(N|\\d+)", re.escape(name).replace("KEY", r"[\w.]+")) for name in names]
    section = re.sub(r"\.\d+(?=\.|$)", ".N", key)
    return any(re.fullmatch(pattern, key) for pattern in patterns) or any(
        name.startswith(f"{section}.") for name in names
    )


def flat_keys(tree: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(tree, dict) or not tree:
        yield prefix
        return
    for key, value in tree.items():
        yield from flat_keys(value, f"{prefix}.{key}" if prefix else str(key))


def unknown_options(page: Path) -> set[str]:
    """Options in backticks or in a block of YAML that do not exist."""
    names = option_names()
    sections = {name.split(".")[0] for name in names} | {"seed"}
    named = {span.split(":")[0].rstrip(".") for span in spans(page)}
    keys = {key for key in named if re.fullmatch(r"\w+(\.\w+)+", key) and key.split(".")[0] in sections}
    for block in blocks(page, "yaml"):
        keys |= set(flat_keys(yaml.safe_load(block.text)))
    return {key for key in keys if not is_option(key, names) and Path(key).suffix not in FILE_ENDINGS}


def unknown_paths(page: Path) -> set[str]:
    """Paths of the repository in backticks that do not exist."""
    folders = r"(presets|stages|src|tests|docs|launch|benchmarks|tune)/[\w./-]*"
    named = {span for span in spans(page) if re.fullmatch(folders, span)} - EXAMPLE_FILES
    return {path for path in named if not (REPOSITORY / path).exists()}


def sfd_command(words: list[str]) -> tuple[Any, list[str]]:
    """The subcommand that the words after `sfd` name, and its arguments."""
    command, rest = ROOT, list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def check_sfd(words: list[str]) -> None:
    """Raises unless the words after `sfd` are a command that could start."""
    command, rest = sfd_command(words)
    is_group = hasattr(command, "commands")
    assert not (is_group and rest and not rest[0].startswith("-")), f"no command {rest[0]}"
    command.make_context("sfd", rest)


def check_dvc(words: list[str], folder: Path) -> None:
    from dvc.cli.parser import get_main_parser

    arguments = get_main_parser().parse_args(words)
    if arguments.cmd == "repro":
        graph = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        unknown = [target for target in arguments.targets if target not in graph and not (folder / target).is_file()]
        assert not unknown, f"neither a stage nor a file: {unknown}"


def left_out(stages: list[str]) -> list[str]:
    """What one of these stages reads, and a launcher that runs them in this order would not have made."""
    order = list(STAGES)
    reads = [read for stage in stages for read in STAGES[stage].upstream]
    return [read for read in reads if read not in stages and order.index(read) > order.index(stages[0])]


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def check_script(script: str) -> None:
    """Checks every command of a block without running it. A block starts in the root of the repository.

    A project that `sfd init` makes has the stages of the repository.
    """
    folder, made = REPOSITORY, ""
    for program, *arguments in simple_commands(script):
        if program == "cd":
            folder = REPOSITORY if arguments[0] == made else (folder / arguments[0]).resolve(strict=True)
        elif program == "sfd":
            check_sfd(arguments)
            made = arguments[1] if arguments[0] == "init" else made
        elif program == "dvc":
            check_dvc(arguments, folder)
        elif program == "make":
            assert set(arguments) <= make_targets(), f"no target {set(arguments) - make_targets()}"
        elif program == "python" and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]), arguments[1]
        elif program == "python":
            assert (folder / arguments[0]).is_file(), arguments[0]
        elif "launch/" in program or program == "sbatch":
            launcher, *stages = [program, *arguments] if program != "sbatch" else arguments
            assert (folder / launcher).is_file(), launcher
            assert not [stage for stage in stages if not (REPOSITORY / f"stages/{stage}.py").is_file()], stages
            assert not left_out(stages), f"{stages} without {left_out(stages)}"
        elif program.startswith("benchmarks/"):
            flags = {word for word in arguments if word.startswith("--")}
            options = (folder / program).with_suffix(".py").read_text(encoding="utf-8")
            assert (folder / program).is_file(), program
            assert not [flag for flag in flags if f'"{flag}"' not in options], flags
        else:
            assert program in OTHER_PROGRAMS, f"unknown program {program}"


@pytest.mark.parametrize("block", bash_blocks(), ids=lambda block: f"{block.page.name}: {block.text[:40].strip()}")
def test_every_command_of_a_block_exists_with_its_flags_stages_targets_and_files(block: Block) -> None:
    check_script(block.text)


@pytest.mark.parametrize(
    "wrong",
    [
        "sfd tune --workers",
        "sfd tune apply",
        "sfd models promoted",
        "cd presets/released-xl && sfd import A B --kind vae",
        "sfd serve --port x  # a comment",
        "dvc repro samples",
        "dvc reproduce",
        "make tests",
        "python benchmarks/none.py",
        "benchmarks/gpu_check.sh --fast",
        "launch/torchrun.sh sampel",
        "launch/torchrun.sh latents diffusion",
        "sdf show",
    ],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check_script(wrong)


@all_pages
def test_commands_within_sentences_exist_with_their_flags(page: Path) -> None:
    for span in spans(page):
        words = span.split()
        if words[0] == "sfd" and len(words) > 1:
            command, rest = sfd_command(words[1:])
            known = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known, span
        elif words[0] in ("dvc", "make", "python") and len(words) > 1 and not span.endswith(("...", "not found")):
            check_script(span)


@all_pages
def test_options_and_paths_in_backticks_and_yaml_blocks_exist(page: Path) -> None:
    assert not (unknown_options(page) | unknown_paths(page)) - EXAMPLE_OPTIONS


@all_pages
def test_python_and_yaml_blocks_can_be_read(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block.text)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block.text)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and the site name them in links."""
    found = tokens(page)
    headings = [after.content for token, after in pairwise(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@all_pages
def test_relative_links_and_pictures_exist(page: Path) -> None:
    children = [child for token in tokens(page) for child in token.children or []]
    found = [str(child.attrs[key]) for child in children for key in ("href", "src") if key in child.attrs]
    found += re.findall(r'<img [^>]*src="([^"]+)"', page.read_text(encoding="utf-8"))
    for link in found:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_page_on_machines_names_every_stage_that_several_processes_share() -> None:
    row = next(line for line in DISTRIBUTED.read_text(encoding="utf-8").splitlines() if line.startswith("| stages for"))
    assert tuple(re.findall(r"`(\w+)`", row)) == PARALLEL


def test_no_script_takes_the_name_of_a_module_that_other_scripts_beside_it_need() -> None:
    """Python looks for modules in the folder of the script first."""
    folder = REPOSITORY / "benchmarks"
    names = {file.stem for file in folder.glob("*.py")}
    packages = importlib.metadata.packages_distributions()
    assert not names & ({*packages} | sys.stdlib_module_names)


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_options_page_is_the_generated_table() -> None:
    written = (REPOSITORY / "docs/options.md").read_text(encoding="utf-8")
    assert written.strip() == describe_params().strip(), "run `sfd params --describe > docs/options.md`"


def test_every_stage_of_the_graph_is_on_its_page() -> None:
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert not [name for name in graph if f"`{name}`" not in (REPOSITORY / "docs/graph.md").read_text(encoding="utf-8")]


def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in PAGES if page != README}
    for page in pages:
        html = page.read_text(encoding="utf-8")
        # A link is followed by a reader's click only; these are fetched by the browser.
        assert not re.search(r'<(script|img|iframe|source)[^>]*\ssrc="?(https?:)?//', html)
        assert not re.search(r'<link[^>]*href="?(https?:)?//', html)


def test_nothing_in_the_repository_names_a_package_registry() -> None:
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        assert "://" not in (REPOSITORY / name).read_text().replace("sqlite:///", "")


def test_everything_that_is_installed_accepts_the_oldest_python_that_we_name() -> None:
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert oldest is not None
    refusing = {
        f"{each.metadata['Name']} {each.version}"
        for each in importlib.metadata.distributions()
        if not SpecifierSet(each.metadata.get("Requires-Python") or "").contains(f"{oldest[1]}.0")
    }
    assert refusing == set(), "Debian 12 has Python 3.11.2"
