from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.workflow.run import copy_repository, snakemake


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test to use it waits for the whole smoke study, beside the other worker's jobs."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the smoke study has run; one for all workers.

    Tests make dry runs in it. One that changes files takes `changed`.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    directory = shared / "smoke-run"
    with FileLock(str(directory) + ".lock"):
        done = directory / "done"
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            copy_repository(directory)
            run = snakemake(directory, "--cores", "all", "--configfile", "studies/smoke.yaml")
            assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
            done.write_text(run.stderr, encoding="utf-8")
    return directory


@pytest.fixture
def changed(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the finished run, times of files included, for a test to change."""
    directory = tmp_path / "run"
    # Studies of another worker's `pending` come and go.
    passing = shutil.ignore_patterns("study-*.yaml")
    shutil.copytree(finished, directory, symlinks=True, ignore=passing)
    yield directory
    shutil.rmtree(directory)
