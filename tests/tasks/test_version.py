"""The commit that is recorded is our own, and says when there is more than it holds."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tasks.runs.version import code_version, own_commit

PROJECT = Path(__file__).resolve().parents[2]


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def ours(tmp_path):
    """A checkout with this one module in it, committed."""
    file = tmp_path / "poly-epo" / "tasks" / "runs" / "version.py"
    file.parent.mkdir(parents=True)
    file.write_text("a = 1\n")
    git(tmp_path / "poly-epo", "init", "-q")
    git(tmp_path / "poly-epo", "add", ".")
    git(tmp_path / "poly-epo", "commit", "-qm", "one")
    return file


def commit_of(file):
    return git(file.parents[2], "rev-parse", "HEAD")[:12]


def test_a_clean_checkout(ours):
    assert own_commit(ours) == commit_of(ours)
    (ours.parents[2] / "notes.txt").write_text("not in the repository")
    assert own_commit(ours) == commit_of(ours)


@pytest.mark.parametrize("staged", [False, True])
def test_a_checkout_with_changes_says_so(ours, staged):
    ours.write_text("a = 2\n")
    if staged:
        git(ours.parents[2], "add", ".")
    assert own_commit(ours) == commit_of(ours) + ".dirty"
    git(ours.parents[2], "commit", "-qam", "two")
    assert own_commit(ours) == commit_of(ours)


def test_tags_are_no_matter(ours):
    git(ours.parents[2], "tag", "-a", "v9", "-m", "nine")
    assert own_commit(ours) == commit_of(ours)


@pytest.mark.parametrize("place", [".venv/lib/python3.11/site-packages", "vendor", "."])
def test_a_package_inside_somebodys_repository_has_no_commit_of_theirs(ours, place):
    """Neither where they ignore it, nor where they have it in their own history; nor at the top without tracking it."""
    theirs = ours.parents[3] / "theirs"
    shutil.copytree(ours.parents[2] / "tasks", theirs / place / "tasks")
    git(theirs, "init", "-q")
    (theirs / "a.txt").write_text("a")
    git(theirs, "add", *([".", "-f"] if place == "vendor" else ["a.txt"]))
    git(theirs, "commit", "-qm", "theirs")
    assert own_commit(theirs / place / "tasks" / "runs" / "version.py") is None


def test_without_a_repository_or_git(ours, monkeypatch):
    shutil.rmtree(ours.parents[2] / ".git")
    assert own_commit(ours) is None
    monkeypatch.setenv("PATH", "")
    assert own_commit(ours) is None


def test_a_hooks_variables_name_another_repository(ours, tmp_path, monkeypatch):
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert own_commit(ours) == commit_of_without(monkeypatch, ours)


def commit_of_without(monkeypatch, ours):
    monkeypatch.delenv("GIT_DIR")
    return commit_of(ours)


def test_what_is_recorded():
    commit = own_commit(PROJECT / "tasks" / "runs" / "version.py")
    assert code_version() == version("poly-epo") + (f"+{commit}" if commit else "")
