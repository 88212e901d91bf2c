"""The import of diffusers without the libraries of its other models."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment

from sfd.encoders.autoencoder_kl import FOR_OTHER_MODELS, not_found


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """One that is imported, and one that is not."""
    names = "sfd_test_imported", "sfd_test_waiting"
    for name in names:
        (tmp_path / f"{name}.py").touch()
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(names[0])
    return names


def test_a_package_is_not_found_within_the_block_alone(packages: tuple[str, str]) -> None:
    _, waiting = packages
    with not_found(waiting):
        assert importlib.util.find_spec(waiting) is None
        with pytest.raises(ImportError):
            importlib.import_module(waiting)
    assert importlib.import_module(waiting).__name__ == waiting


def test_a_package_that_is_imported_already_stays(packages: tuple[str, str]) -> None:
    imported, _ = packages
    before = sys.modules[imported]
    with not_found(imported):
        assert importlib.import_module(imported) is before
    assert importlib.import_module(imported) is before


@pytest.mark.long
def test_a_texture_vae_is_saved_and_loaded_without_the_other_libraries_which_can_be_imported_later(
    tmp_path: Path,
) -> None:
    code = f"""
import sys
from pathlib import Path
from sfd.encoders.autoencoder_kl import import_autoencoder
from sfd.encoders.texture_vae import KlVae, load_texture_vae
folder = Path({str(tmp_path)!r})
KlVae(import_autoencoder()()).save(folder)
load_texture_vae(folder)
print(*(name in sys.modules for name in {FOR_OTHER_MODELS!r}))
import peft
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(forked=False), capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False False"), done.stderr
