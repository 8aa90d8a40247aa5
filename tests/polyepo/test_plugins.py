"""Code that users bring: how it is named, imported, recorded, and not imported."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, PlainValidator, SerializeAsAny, ValidationError

from polyepo import plugins
from polyepo.domains.base import Domain
from polyepo.domains.countdown import Countdown
from polyepo.domains.polynomial import Polynomial
from polyepo.plugins import Choice, MissingCodeError, given_by_user, required


class Missing(Domain):
    model_config = ConfigDict(extra="allow", frozen=True)


class Config(BaseModel):
    domain: Annotated[
        SerializeAsAny[Domain], PlainValidator(Choice("domain", Domain, (Polynomial, Countdown), Missing))
    ]


SUDOKU = """
    from __future__ import annotations
    from polyepo.domains.base import Domain
    from pydantic import Field

    class Sudoku(Domain):
        size: int = Field(4, ge=1)

    class Other:
        pass

    def function(): ...
"""


@pytest.fixture(autouse=True)
def _nothing_provided(monkeypatch):
    monkeypatch.setattr(plugins, "_provided", {})
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def read(folder: Path, **section) -> Config:
    with given_by_user(folder):
        return Config.model_validate({"domain": section})


def test_the_fields_of_a_class_are_the_keys_of_its_section(tmp_path):
    file = write(tmp_path / "tasks" / "sudoku.py", SUDOKU)
    config = read(tmp_path, name="tasks/sudoku.py:Sudoku", size=9)
    assert config.domain.size == 9
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert config.model_dump(mode="json") == {"domain": {"name": "tasks/sudoku.py:Sudoku", "code": digest, "size": 9}}
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_a_record_has_nothing_imported(tmp_path):
    """Whoever opens somebody else's run does not run their code, and keeps what the record says."""
    write(tmp_path / "evil.py", SUDOKU + f"\n    open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    record = {"domain": {"name": f"{tmp_path}/evil.py:Sudoku", "code": "0" * 64, "size": 9}}
    config = Config.model_validate(record)
    assert isinstance(config.domain, Missing)
    assert config.model_dump(mode="json") == record
    assert not (tmp_path / "ran").exists()
    with pytest.raises(MissingCodeError, match="--code FILE"):
        required(record["domain"]["name"], "0" * 64)


@pytest.mark.parametrize("name", ["os:system", "antigravity:fly", "polyepo.domains.base:Domain"])
def test_a_record_imports_no_installed_module_either(name):
    before = set(sys.modules)
    assert isinstance(Config.model_validate({"domain": {"name": name, "code": "0" * 64}}).domain, Missing)
    assert set(sys.modules) == before


def test_code_that_changed_is_not_the_runs(tmp_path):
    file = write(tmp_path / "sudoku.py", SUDOKU)
    old = read(tmp_path, name="sudoku.py:Sudoku").model_dump(mode="json")
    write(file, SUDOKU.replace("ge=1", "ge=2"))
    new = read(tmp_path, name="sudoku.py:Sudoku")
    assert new.model_dump(mode="json") != old
    assert isinstance(Config.model_validate(old).domain, Missing)
    with pytest.raises(MissingCodeError, match="--allow-changed-code"):
        required("sudoku.py:Sudoku", old["domain"]["code"])
    with pytest.raises(ValidationError):  # the new text is what is imported
        read(tmp_path, name="sudoku.py:Sudoku", size=1)


def test_what_a_file_imports_from_its_folder_is_part_of_its_code(tmp_path):
    write(tmp_path / "sudoku.py", SUDOKU + "\n    import grid_of_sudoku\n")
    neighbour = write(tmp_path / "grid_of_sudoku.py", "SIZE = 4\n")
    first = read(tmp_path, name="sudoku.py:Sudoku").domain.code
    code = plugins.find("sudoku.py:Sudoku", "domain")
    assert set(code.files) == {"sudoku.py", "grid_of_sudoku.py"}
    assert set(code.sources) == set(code.files.values())
    neighbour.write_text("SIZE = 5\n")
    assert read(tmp_path, name="sudoku.py:Sudoku").domain.code != first


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "sudoku.py:Sudoku", "sise": 9}, "Sudoku`.sise"),
        ({"name": "sudoku.py:Sudoku", "size": 0}, "greater than or equal to 1"),
        ({"name": "sudoku.py:Other"}, "sudoku.py:9.*must be a subclass of polyepo.domains.base.Domain"),
        ({"name": "sudoku.py:function"}, "must be a subclass"),
        ({"name": "sudoku.py:Sudoko"}, "has no 'Sudoko'; it has Other, Sudoku, function"),
        ({"name": "nothing.py:Sudoku"}, "no such file .*nothing.py"),
        ({"name": "no_such_module_here:Sudoku"}, "cannot be imported: ModuleNotFoundError"),
        ({"name": "a b:Sudoku"}, "neither a file that ends in .py nor a module"),
        ({"name": "sudoku.py:"}, "must be FILE.py:NAME"),
        ({"name": "polynomal"}, "'polynomal' found using .* does not match any of the expected tags"),
        ({"name": "broken.py:Sudoku"}, r"cannot be imported: ZeroDivisionError.*broken.py, line 2"),
        ({"name": "syntax.py:Sudoku"}, "cannot be imported: SyntaxError.*line 1"),
        ({"name": "raises.py:Raises"}, r"cannot be made: RuntimeError: no.*raises.py, line 5"),
        ({"size": 9}, "Unable to extract tag"),
        ("sudoku.py:Sudoku", "valid dictionary"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, section, says):
    write(tmp_path / "sudoku.py", SUDOKU)
    write(tmp_path / "broken.py", "x = 1\ny = x / 0\n")
    write(tmp_path / "syntax.py", "def (\n")
    write(
        tmp_path / "raises.py",
        """
        from polyepo.domains.base import Domain
        class Raises(Domain):
            def model_post_init(self, context):
                raise RuntimeError("no")
        """,
    )
    with given_by_user(tmp_path), pytest.raises(ValidationError, match=says):
        Config.model_validate({"domain": section})


def test_a_subclass_that_would_come_back_as_its_parent_is_refused():
    class Mine(Polynomial):
        pass

    with pytest.raises(ValidationError, match="Mine is a class of its own"):
        Config(domain=Mine())
    assert Config(domain=Polynomial()).domain == Polynomial()


@pytest.fixture
def _installed(tmp_path, monkeypatch):
    """A package that declares entry points, as pip would leave it."""
    write(tmp_path / "site" / "their_tasks.py", SUDOKU)
    info = tmp_path / "site" / "their_tasks-1.2.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: their-tasks\nVersion: 1.2\n")
    write(info / "top_level.txt", "their_tasks\n")
    write(
        info / "entry_points.txt",
        """
        [polyepo.domains]
        sudoku = their_tasks:Sudoku
        countdown = their_tasks:Sudoku
        """,
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    plugins._declared.cache_clear()
    yield
    plugins._declared.cache_clear()
    sys.modules.pop("their_tasks", None)


@pytest.mark.usefixtures("_installed")
def test_an_installed_package_adds_bare_names():
    config = Config.model_validate({"domain": {"name": "sudoku", "size": 9}})
    assert config.domain.size == 9
    assert plugins.find("sudoku", "domain").package == "their-tasks 1.2"
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="'sudoku'"):
        Config.model_validate({"domain": {"name": "sudoko"}})


@pytest.mark.usefixtures("_installed")
def test_an_installed_name_that_is_ours_is_refused():
    with pytest.raises(ValidationError, match="declares a domain 'countdown', which is ours"):
        Config.model_validate({"domain": {"name": "countdown"}})
