"""The library alone: what its wheel holds, that it needs nothing heavy, what it says of the rest, and no circles."""

import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import grimp
import pytest

PROJECT = Path(__file__).resolve().parents[1]
# What `pip install poly-epo` brings, with what these need themselves.
LIGHT = ["numpy", "pydantic", "pydantic_core", "typing_extensions", "annotated_types", "typing_inspection", "yaml"]
_ALONE = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {{*sys.stdlib_module_names, "polyepo", "flows", "storage", "tasks", *{LIGHT!r}}} or top[0] == "_":
            return None
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return found(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
"""


def alone(code, path):
    """Run code where nothing is installed but the library's own dependencies, and poly-epo is what `path` holds."""
    return subprocess.run(
        [sys.executable, "-c", f"{_ALONE}\nsys.path.insert(0, {str(path)!r})\n{code}"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True
    )
    for name in files.stdout.splitlines():
        if name.startswith(("polyepo/", "storage/", "tasks/", "flows/", "pyproject.toml", "README.md", "LICENSE")):
            target = source / name
            if (PROJECT / name).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((PROJECT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(folder), str(source)], check=True)
    (found,) = folder.glob("*.whl")
    with zipfile.ZipFile(found) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_holds_what_it_needs(wheel):
    assert (wheel / "polyepo" / "py.typed").is_file()
    for data in (
        "polyepo/judges/llm/template.md",
        "polyepo/report/template.html.jinja",
        "storage/queries/pass_at_k.sql",
    ):
        assert (wheel / data).is_file(), data
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    needs = message_from_string(metadata.read_text()).get_all("Requires-Dist")
    light = {need.partition(">")[0] for need in needs if "extra ==" not in need}
    assert light == {"numpy", "pydantic", "pyyaml"}
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"train", "judge", "pipeline", "trl", "verl", "dev"} <= extras.keys()


def test_the_library_works_with_its_light_dependencies_alone(wheel):
    done = alone(
        """
import polyepo
for name in polyepo.__all__:
    if name != "testing":
        getattr(polyepo, name)
from polyepo.advantages import marginal_set_advantages
from polyepo.domains import Domain, Problem, Verdict, Polynomial
from polyepo.judges import Judge, Group, ProgramJudge
from polyepo.objectives import BY_NAME
for made in BY_NAME.values():
    print(marginal_set_advantages([1, 1, 0, 0], [0, 1, 1, 2], 2, made()).sum().round(6))
domain = Polynomial()
problem = domain.problems("train")[0]
print(polyepo.metrics.pass_at_k(4, 2, 1), domain.verify(problem, "0 0 0 0 0").reward in (0, 1))
assert polyepo.__file__.startswith(sys.path[0])
""",
        wheel,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0.5 True"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import polyepo.policy.trainer", "pip install 'poly-epo[train]'"),
        ("import storage", "pip install 'poly-epo[pipeline]'"),
        ("import polyepo.integrations.trl", "pip install 'poly-epo[trl]'"),
        ("import polyepo.integrations.verl", "pip install 'poly-epo[verl]'"),
        (
            "from polyepo.judges import TextJudge, Group\nfrom polyepo.domains import Problem, Polynomial\n"
            "problem = Problem(problem_id='p', domain='maths', prompt='?')\n"
            "TextJudge(max_distance=.5).label(Polynomial(), [Group(problem, ['one text', 'another'])])",
            "pip install 'poly-epo[judge]'",
        ),
        (
            "from polyepo.domains import Maths, Problem\n"
            "problem = Problem(problem_id='p', domain='maths', prompt='?', answer='2')\n"
            "Maths(path='x.jsonl', heldout_path='y.jsonl').verify(problem, '\\\\boxed{1+1}')",
            "pip install 'poly-epo[judge]'",
        ),
    ],
)
def test_what_needs_an_extra_names_it(wheel, code, said):
    done = alone(code, wheel)
    assert done.returncode == 1
    assert "MissingPackageError" in done.stderr.splitlines()[-1]
    assert said in done.stderr.splitlines()[-1], done.stderr


def test_the_command_says_in_a_line_what_it_needs(wheel):
    done = alone("from flows.__main__ import main\nmain()", wheel)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'poly-epo[pipeline]'" in done.stderr


def test_no_module_imports_in_a_circle():
    """Neither at its top nor within a function: what is imported late may be late, but not to break a circle."""
    graph = grimp.build_graph("polyepo", "storage", "tasks", "flows", cache_dir=None)
    for module in sorted(graph.modules):
        for imported in graph.find_modules_directly_imported_by(module):
            back = graph.find_shortest_chain(imported, module)
            assert back is None, " -> ".join([module, *back])
