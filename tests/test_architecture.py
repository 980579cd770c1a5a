"""Does the package keep to its plan? Direction of imports, lazy imports, size, documentation, tests, environment."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import moeut

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "moeut"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 350

# A part of the package may import itself and what stands below it; parts on one line are strangers to each other.
# "moeut" is the package's own __init__.py, which names what is public.
LAYERS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"moeut"},
    {"experiments"},
    {"presets"},
    {"config"},
    {"training", "evaluation", "generation", "analysis", "hf", "official"},
    {"variants"},
    {"model", "data"},
    {"experts"},
    {"trees"},
    {"settings", "files", "validation"},
]

ALLOWED_IMPORTS: dict[tuple[str, str], str] = {
    ("generation", "hf"): "generates with transformers' GenerationMixin, which our transformers model has",
    ("training", "evaluation"): "reports held-out loss while it trains, measured as `moeut evaluate` measures it",
}

# Files whose meaning is proved in another test file than their own.
TESTED_ELSEWHERE: dict[str, str] = {
    "moeut/__main__.py": "test_architecture.py runs `python -m moeut`",
    **dict.fromkeys(
        (
            f"moeut/commands/{name}.py"
            for name in (
                "analysis",
                "answers",
                "data",
                "evaluation",
                "generation",
                "models",
                "reproduction",
                "training",
            )
        ),
        "test_cli.py and the tests of each part type the commands",
    ),
}

ENVIRONMENT: dict[str, set[str]] = {
    "moeut/experts/compiling.py": {"XDG_CACHE_HOME"},  # where a compiled library is kept, not what it computes
    "moeut/training/distributed.py": {"RANK", "WORLD_SIZE", "LOCAL_RANK"},  # how torchrun says who is who
}

HEAVY = [
    "transformers",
    "datasets",
    "triton",
    "matplotlib",
    "rich",
    "tokenizers",
    "lm_eval",
    "torch.distributed.checkpoint",
]

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def part_of(file: Path) -> str:
    """The part of the package that a file belongs to: a folder's name, a file's stem, "moeut" for its __init__.py."""
    first, *deeper = file.relative_to(PACKAGE).parts
    return first if deeper else {"__init__.py": "moeut"}.get(first, first.removesuffix(".py"))


def imported_parts(file: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import of our own package, wherever in the file it stands."""
    package = ["moeut", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "moeut":
            names = [f"moeut.{node.attr}"]
        else:
            continue
        for root, *rest in (name.split(".") for name in names):
            # The version is everybody's, and a bare `import moeut` shows what it is for where it is used.
            if root == "moeut" and rest not in ([], ["__version__"]):
                inside = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file())
                yield node.lineno, rest[0] if inside else "moeut"


def public(tree: ast.Module) -> Iterator[Documented]:
    """Public functions and classes of a module and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
                yield from (method for method in methods if not method.name.startswith("_"))


def modules_loaded_by(*arguments: str) -> set[str]:
    """Names of the modules that a fresh interpreter loads when it runs with these arguments."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return {line.rsplit("|", 1)[1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}


def test_every_part_has_a_layer():
    known = set().union(*LAYERS)
    assert {part_of(file) for file in FILES} <= known


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_point_one_way(file: Path):
    rank = {part: depth for depth, layer in enumerate(LAYERS) for part in layer}
    own = part_of(file)
    wrong = [
        f"{relative(file)}:{line}: {own} may not import {part}"
        for line, part in imported_parts(file)
        if part != own and rank[part] <= rank[own] and (own, part) not in ALLOWED_IMPORTS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_allowed_import_is_used():
    used = {(part_of(file), part) for file in FILES for _, part in imported_parts(file)}
    assert set(ALLOWED_IMPORTS) <= used


@pytest.mark.parametrize("statement", ["import moeut", "from moeut import LanguageModel, MoEUT"])
def test_import_loads_nothing_heavy(statement: str):
    loaded = modules_loaded_by("-c", statement)
    assert "moeut" in loaded
    assert not loaded & set(HEAVY)


def test_help_loads_no_torch():
    loaded = modules_loaded_by("-m", "moeut", "--help")
    assert "moeut.cli" in loaded
    assert not loaded & {"torch", *HEAVY}


def test_official_files_are_converted_without_transformers():
    loaded = modules_loaded_by("-c", "import moeut.experiments.conversion")
    assert "moeut.official.loading" in loaded
    assert "transformers" not in loaded


def test_public_names_are_what_type_checkers_are_told():
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    told = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moeut.")
        for alias in node.names
    }
    assert {name for name in dir(moeut) if not name.startswith("_")} == set(told)
    for name, home in told.items():
        assert getattr(moeut, name) is getattr(import_module(str(home)), name)


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_files_are_small_and_documented(file: Path):
    text = file.read_text("utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{relative(file)} does not say which question it answers"
    assert len(text.splitlines()) <= MAX_LINES, f"{relative(file)} is two files: it has over {MAX_LINES} lines"
    bare = [f"{relative(file)}:{node.lineno}: {node.name}" for node in public(tree) if not ast.get_docstring(node)]
    assert not bare, "without a docstring:\n" + "\n".join(bare)


def tree_in(markdown: str) -> set[str]:
    """Paths drawn under "Where everything is": one a line, folders end in /, indentation says what is inside."""
    section = re.search(r"^#+ Where everything is\n(.*?)(?=^#+ |\Z)", markdown, re.MULTILINE | re.DOTALL)
    assert section, 'README.md has no heading "Where everything is"'
    block = re.search(r"^```\w*\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert block, 'nothing is drawn under "Where everything is"'
    paths: set[str] = set()
    open_folders: list[tuple[int, str]] = [(-1, "")]
    for line in filter(str.strip, block[1].splitlines()):
        indentation = len(line) - len(line.lstrip())
        while open_folders[-1][0] >= indentation:
            open_folders.pop()
        path = open_folders[-1][1] + line.split()[0]
        if path.endswith("/"):
            open_folders.append((indentation, path))
        paths.add(path)
    return paths


def test_the_drawing_is_read_by_indentation():
    drawing = (
        "# Where everything is\n\n```\na/   first\n  b.py  what\n  c/\n    d.py\ne.py\n```\n# Next\n```\nno/\n```\n"
    )
    assert tree_in(drawing) == {"a/", "a/b.py", "a/c/", "a/c/d.py", "e.py"}


def test_readme_draws_the_package():
    drawn = tree_in((ROOT / "README.md").read_text("utf-8"))
    files = (file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    # A subpackage's __init__.py may be left out where its folder's line says enough.
    left_out = {relative(file) for file in PACKAGE.glob("*/**/__init__.py")}
    missing = {relative(file) for file in files} - left_out - drawn
    gone = {path for path in drawn if not (ROOT / path).exists()}
    assert not missing, f"README.md does not draw {sorted(missing)}"
    assert not gone, f"README.md draws what is not there: {sorted(gone)}"


def home_of_tests(file: Path) -> Path:
    """Where the tests of a source file belong: moeut/data/tokens.py → tests/data/test_tokens.py."""
    folder = file.relative_to(PACKAGE).parent
    name = file.parent.name if file.name == "__init__.py" else file.stem
    return ROOT / "tests" / folder / f"test_{name}.py"


def test_every_file_has_its_tests():
    untested = [
        f"{relative(file)} → {relative(home_of_tests(file))}"
        for file in FILES
        if relative(file) not in TESTED_ELSEWHERE and any(public(ast.parse(file.read_text("utf-8"))))
        if not home_of_tests(file).is_file()
    ]
    assert not untested, "no tests for:\n" + "\n".join(untested)


def test_tests_elsewhere_are_not_forgotten():
    assert all((ROOT / file).is_file() for file in TESTED_ELSEWHERE)
    assert not [file for file in TESTED_ELSEWHERE if home_of_tests(ROOT / file).is_file()]


def test_test_files_have_different_names():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest takes files of one name for one module"
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_environment_variable_changes_a_result(file: Path):
    code = ast.unparse(ast.parse(file.read_text("utf-8")))  # without comments
    mentions = re.findall(r"\b(?:environb?|getenv)\b", code)
    read = re.findall(r"\b(?:environ\[|environ\.get\(|getenv\()'(\w+)'|'(\w+)' in os\.environ", code)
    assert len(mentions) == len(read), f"{relative(file)} uses the environment as a whole"
    assert {first or second for first, second in read} <= ENVIRONMENT.get(relative(file), set())
