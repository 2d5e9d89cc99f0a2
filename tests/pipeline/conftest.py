"""Fixtures of the tests that run the real dvc: projects that are shared, or copied for one test."""

import pytest
from project import Project, build, reproduce


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> Project:
    """A reproduced project; copy it, and leave it as it is."""
    return reproduce(tmp_path_factory.mktemp("pipeline") / "project", "base", "rarl")


@pytest.fixture
def without_benchmarks(tmp_path) -> Project:
    """A clone that has never run, with the own test set alone."""
    project = build(tmp_path / "new/project")
    project.change("models", ["base"])
    project.change("judges", ["lexical"])
    return project


@pytest.fixture
def project(reproduced, tmp_path) -> Project:
    """A copy of the reproduced project, to change."""
    return reproduced.copy(tmp_path / "project")
