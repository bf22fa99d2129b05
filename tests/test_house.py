"""The house keeps its own rules: imports run down, every public name is typed and documented, start-up is light."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import taygeta

ROOT = Path(taygeta.__file__).parent
REPOSITORY = Path(__file__).parents[1]
# Lowest first; a folder imports from itself and from folders before it. spec and numerics are siblings, as are the
# leaves at the end.
ORDER = (
    "base", "numerics", "spec", "graph", "frontend", "economics", "cost", "compiler", "machine", "serving", "explore",
    "api", "report", "endpoint", "validate", "app",
)  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def folder(path: Path) -> str:
    inside = path.relative_to(ROOT).parts
    return inside[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "taygeta":
                names = [f"taygeta.{a.name}" for a in node.names if a.name != "__version__"]
        out |= {name.split(".")[1] for name in names if name.startswith("taygeta.")}
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down(path):
    home = folder(path)
    if home in ("__init__", "__main__"):
        return
    assert home in ORDER, f"{home} has no place in the order of the house"
    above = {name for name in imported(path) if name in ORDER and ORDER.index(name) > ORDER.index(home)}
    assert not above, f"{path.relative_to(ROOT)} imports {above} from above"


def test_no_cycles_between_modules():
    graph = {}
    names = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        found = set()
        for node in top:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                modules += [f"{node.module}.{a.name}" for a in node.names]
            found |= {m for m in modules if m in names and m != name}
        graph[name] = found
    done, path = set(), []

    def visit(name):
        if name in path:
            raise AssertionError(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        path.append(name)
        for other in graph[name]:
            visit(other)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def public() -> list[tuple[str, object]]:
    out = []
    for info in pkgutil.walk_packages([str(ROOT)], "taygeta."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", None) == info.name
            if own and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                out.append((f"{info.name}.{name}", value))
    return out


PUBLIC = public()
# Hot loops over arrays, typed by the compiler.
COMPILED = ("taygeta.cost.step.", "taygeta.cost.loops.", "taygeta.serving.core")


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_are_documented_and_typed(name, value):
    assert (value.__doc__ or "").strip(), f"{name} has no docstring"
    if inspect.isfunction(value) and not name.startswith(COMPILED):
        for parameter in inspect.signature(value).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter.name} has no type"
        assert inspect.signature(value).return_annotation is not inspect.Signature.empty, f"{name} has no return type"


def test_prelude_is_what_it_says():
    assert sorted(taygeta.__all__) == taygeta.__all__
    for name in taygeta.__all__:
        assert getattr(taygeta, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = taygeta.nonsense


def test_version_is_said_once():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{taygeta.__version__}"' in text


@pytest.mark.parametrize("heavy", ["numpy", "numba", "polars", "matplotlib", "torch", "rich.table"])
def test_import_and_help_are_light(heavy):
    code = (
        "import sys, contextlib\n"
        "import taygeta.app.cli as c\n"
        "sys.argv = ['taygeta', '--help']\n"
        "with contextlib.suppress(SystemExit): c.main()\n"
        f"assert {heavy!r} not in sys.modules, {heavy!r}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_one_prediction_needs_no_compiler():
    code = (
        "import sys, taygeta as tg\n"
        "tg.serve_rate(tg.deploy('gpt2', on='h100'), 100, 100, 2)\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_calibration_fields_match_the_kernels():
    """Every constant of every kernel is a field of a chip, and every such field is a constant of a kernel."""
    from taygeta.cost import attention, collective, experts, matmul, scan, vector
    from taygeta.spec.fields import FIELDS

    kernels = {
        "matmul": matmul.MatmulConstants, "quantise": vector.QuantiseConstants, "vector": vector.VectorConstants,
        "attention": attention.AttentionConstants, "scan": scan.ScanConstants, "experts": experts.ExpertsConstants,
        "collective": collective.CollectiveConstants,
    }  # fmt: skip
    wanted = {f"calibration.{kernel}.{name}" for kernel, kind in kernels.items() for name in kind._fields}
    given = {path for path in FIELDS if path.count(".") == 2 and path.split(".")[1] in kernels}
    assert wanted <= given
    assert given - wanted == {"calibration.matmul.core_port_share", "calibration.matmul.usable_cache"}


@pytest.mark.parametrize(
    "path",
    [*sorted(p for p in REPOSITORY.glob("docs/*.md")), REPOSITORY / "README.md"],
    ids=lambda p: p.name,
)
def test_documents_speak_of_the_product_only(path):
    text = path.read_text(encoding="utf-8")
    private = ("/work" + "/", "/root" + "/", "sub" + "agent")
    assert not [word for word in private if word in text]
    assert not re.search(r"\biss" + r"ue \d", text)
