"""The house as a whole: order of imports, public names, docstrings, what importing it costs."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_initpolicy

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "torch_initpolicy"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FLOORS = (
    {"errors", "notebook"},
    {"files", "locks", "undo"},
    {"tensors"},
    {"sites"},
    {"trace"},
    {"multipliers"},
    {"steps"},
    {"deferred"},
    {"policy"},
    {"moments"},
    {"writing"},
    {"materialize"},
    {"planning"},
    {"compare"},
    {"calibrate"},
    {"symmetry"},
    {"signal"},
    {"api"},
    {"report", "decorator", "scaling", "testing", "integrations"},
    {"cli", "pytest_plugin"},
    {"__main__"},
)
"""The floors of the house: a module imports from its own floor and from those before it."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def dotted(path: Path) -> str:
    """Write a module's path below the package with dots: `trace.flow`, and `` for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Yield what a module imports from the package, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE.name))
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative path"
            if node.module and node.module.split(".")[0] == PACKAGE.name:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(path: Path) -> set[str]:
    """Collect the rooms of the house a module imports from."""
    return {name.split(".")[1] for name in imports(path) if name.split(".")[1] in FLOOR}


class TestImports:
    """Imports run one way."""

    @pytest.mark.parametrize(
        "path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=dotted
    )
    def test_order(self, path):
        """A module imports from its own floor or from a lower one, and never the whole package."""
        own = dotted(path).split(".")[0]

        assert {room for room in rooms(path) if FLOOR[room] > FLOOR[own]} == set()
        assert not any(name.split(".")[1] not in FLOOR for name in imports(path))

    def test_no_cycles(self):
        """Among modules, too, no import leads back to where it started."""
        known = {dotted(path) for path in MODULES}
        graph = {dotted(path): module_imports(path, known) for path in MODULES}
        del graph[""]
        while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
            graph = {name: needs for name, needs in graph.items() if name not in leaves}

        assert graph == {}

    def test_every_room_has_a_floor(self):
        """Whoever adds a folder or a module says where in the order it stands."""
        assert {dotted(path).split(".")[0] for path in MODULES} - {""} == FLOOR.keys()

    def test_importing_brings_torch_and_the_standard_library_only(self):
        """`import torch_initpolicy` imports nothing that `import torch` does not."""
        code = "import sys, {}; print(*{{name.split('.')[0] for name in sys.modules}})"
        names = {
            module: set(run_python(code.format(module)).split())
            for module in ("torch", "torch_initpolicy")
        }

        brought = names["torch_initpolicy"] - names["torch"] - sys.stdlib_module_names
        assert brought == {"torch_initpolicy"}


def module_imports(path: Path, known: set[str]) -> set[str]:
    """Collect the modules (not the names in them) a module imports."""
    wanted = {name.removeprefix(f"{PACKAGE.name}.") for name in imports(path)}
    return {name if name in known else name.rpartition(".")[0] for name in wanted} - {""}


def run_python(code: str) -> str:
    """Run `code` in a fresh interpreter and return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


LONGEST = 500
"""Lines of a module, beyond which it is two."""

MOST_METHODS = 15
MOST_IMPORTS = 8

CEILINGS = {"long modules": 0, "crowded classes": 2, "busy modules": 31, "doubled names": 98}
"""How many exceptions there are today. Numbers here are only ever lowered."""


def top_level(tree: ast.Module) -> set[str]:
    """Collect the functions, classes and constants that a module defines; `_` is nobody's name."""
    named = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in tree.body if isinstance(node, named)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        parts = (part for target in filter(None, targets) for part in ast.walk(target))
        names |= {part.id for part in parts if isinstance(part, ast.Name)}
    return {name for name in names if name != "_" and not name.startswith("__")}


TREES = {dotted(path): ast.parse(path.read_text()) for path in MODULES}


class TestSize:
    """What has grown too large to be read at once is split; exceptions are counted, and fall."""

    def test_modules(self):
        """A module ends after 500 lines."""
        lengths = {dotted(path): len(path.read_text().splitlines()) for path in MODULES}
        long = {name: length for name, length in lengths.items() if length > LONGEST}

        assert len(long) <= CEILINGS["long modules"], long

    def test_classes(self):
        """A class has at most 15 methods."""
        methods = {
            node.name: sum(isinstance(part, ast.FunctionDef) for part in node.body)
            for tree in TREES.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        crowded = {name: count for name, count in methods.items() if count > MOST_METHODS}

        assert len(crowded) <= CEILINGS["crowded classes"], crowded

    def test_imports(self):
        """A module imports from at most 8 others of the package."""
        known = {dotted(path) for path in MODULES}
        counts = {dotted(path): len(module_imports(path, known)) for path in MODULES}
        busy = {name: count for name, count in counts.items() if name and count > MOST_IMPORTS}

        assert len(busy) <= CEILINGS["busy modules"], busy

    def test_names(self):
        """A name at the top level is defined in one module alone, so that it means one thing."""
        places = {}
        for module, tree in TREES.items():
            for name in top_level(tree):
                places.setdefault(name, []).append(module)
        doubled = {name: found for name, found in places.items() if len(found) > 1}

        assert len(doubled) <= CEILINGS["doubled names"], doubled


def mirror(path: Path) -> Path:
    """Return the file that tests a module: `trace/flow.py` is tested by `trace/test_flow.py`."""
    inside = path.relative_to(PACKAGE)
    return ROOT / "tests" / inside.parent / f"test_{inside.name}"


def defines(tree: ast.Module) -> bool:
    """Say whether a module defines a function or a class that others may use."""
    named = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, named) and not node.name.startswith("_") for node in tree.body)


class TestMap:
    """Tests mirror the package file by file."""

    def test_every_module_has_its_tests(self):
        """A module that others use has a test file of its name."""
        without = {
            dotted(path)
            for path in MODULES
            if path.stem not in {"__init__", "__main__"}
            and defines(TREES[dotted(path)])
            and not mirror(path).exists()
        }

        assert without == set()


PUBLIC = {name: getattr(torch_initpolicy, name) for name in torch_initpolicy.__all__}
HANDED_OUT = {
    *("Calibration", "Comparison", "Facts", "Finding", "ScalingCheck", "Signal", "Site", "Step"),
    *("Verification", "Watch"),
}
"""What functions return and a user annotates with, and nobody makes by hand."""

CALLABLES = {
    f"{prefix}{name}": thing
    for prefix, names in (
        ("", PUBLIC),
        *((f"{name}.", vars(space)) for name, space in PUBLIC.items() if inspect.ismodule(space)),
    )
    for name, thing in names.items()
    if (inspect.isfunction(thing) or inspect.isclass(thing))
    and not name.startswith("_")
    and (prefix == "" or name in PUBLIC[prefix[:-1]].__all__)
    and not thing.__module__.endswith(".base")  # is implemented and handed out, not called
    and name not in HANDED_OUT
}


class TestPublicNames:
    """What a user sees."""

    def test_all_is_complete_and_sorted(self):
        """`__all__` lists exactly the public names, in order."""
        public = {
            name
            for name, thing in vars(torch_initpolicy).items()
            if not name.startswith("_")
            and not (inspect.ismodule(thing) and name not in torch_initpolicy.__all__)
        }

        assert list(torch_initpolicy.__all__) == sorted(public)

    @pytest.mark.parametrize("path", MODULES, ids=dotted)
    def test_all_of_each_module_exists(self, path):
        """A module's `__all__` names what is there, once."""
        module = sys.modules.get(".".join(filter(None, (PACKAGE.name, dotted(path)))))
        names = list(getattr(module, "__all__", []))

        assert len(set(names)) == len(names)
        assert [name for name in names if name not in vars(module)] == []

    @pytest.mark.parametrize(
        "name",
        [
            *("apply_policy", "plan_policy", "init_policy", "InitPolicy", "Rule"),
            *("initializers", "presets", "match", "restore", "Plan", "Receipt", "Report"),
            *sorted(HANDED_OUT),
        ],
    )
    def test_promised_names(self, name):
        """The names of the public surface are there, and say what they are."""
        assert name in PUBLIC
        assert inspect.getdoc(PUBLIC[name])

    @pytest.mark.parametrize("name", CALLABLES)
    def test_docstring_with_an_example(self, name):
        """Everything public has a docstring, and shows a call where it is more than `word()`."""
        docstring = inspect.getdoc(CALLABLES[name])

        assert docstring
        assert docstring.splitlines()[0].endswith(".")
        is_word = name.startswith("match.") and not inspect.signature(CALLABLES[name]).parameters
        assert is_word or ">>> " in docstring


class TestText:
    """What is written speaks for every reader."""

    @pytest.mark.parametrize("path", MODULES, ids=dotted)
    def test_module_docstring(self, path):
        """Every module says what it knows."""
        assert ast.get_docstring(ast.parse(path.read_text()))

    def test_what_every_method_does_is_said_once(self):
        """A method without a docstring does what that of another class, its base, says."""
        nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
        classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
        public = [kind for kind in classes if not kind.name.startswith("_")]
        methods = [m for kind in public for m in kind.body if isinstance(m, ast.FunctionDef)]
        said = {method.name for method in methods if ast.get_docstring(method)}

        assert {m.name for m in methods if not m.name.startswith("_")} - said == set()

    @pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
    def test_every_test_says_what_must_hold(self, path):
        """Each test function and each test file has a docstring."""
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        tests = [node for node in functions if node.name.startswith("test_")]

        assert ast.get_docstring(tree)
        assert [test.name for test in tests if not ast.get_docstring(test)] == []

    def test_no_path_of_a_single_machine(self):
        """No file names a folder that exists on one machine only."""
        files = [*MODULES, *TESTS, *ROOT.glob("*.md"), *ROOT.glob("examples/**/*.py")]
        private = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|mnt)/")

        assert [path.name for path in files if private.search(path.read_text())] == []
