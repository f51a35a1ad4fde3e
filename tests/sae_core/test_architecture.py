"""The five rules of docs/design.md, held against the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "sae_core").rglob("*.py")), *sorted((ROOT / "app").rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_sae_core_never_imports_app() -> None:
    assert [path for path in SOURCES if path.is_relative_to(ROOT / "sae_core") and "app" in roots(path)] == []


def test_only_schema_and_store_know_sql() -> None:
    knowing = {
        path.relative_to(ROOT).as_posix() for path in SOURCES if roots(path) & {"sqlalchemy", "alembic", "psycopg"}
    }
    allowed = {
        name for name in knowing if name.startswith(("sae_core/store", "sae_core/schema", "sae_core/migrations/"))
    }
    assert knowing == allowed
    assert "sae_core/store.py" in knowing


def test_only_the_model_module_registers_hooks() -> None:
    hooking = [path.name for path in SOURCES if "register_forward" in path.read_text(encoding="utf-8")]
    assert hooking == ["model.py"]


def test_index_and_store_meet_only_through_records() -> None:
    core = ROOT / "sae_core"
    store_modules = {f"sae_core.{path.stem}" for path in core.glob("store*.py")} | {"sae_core.schema"}
    assert not imports(core / "index.py") & store_modules
    assert not imports(core / "evidence.py") & store_modules
    for path in [*core.glob("store*.py"), core / "schema.py"]:
        assert not roots(path) & {"torch", "transformers"}, path
        assert not imports(path) & {"sae_core.index", "sae_core.model", "sae_core.sae"}, path


@pytest.mark.parametrize("module", ["app.main", "app.cli", "app.demo", "app.server", "sae_core.store"])
def test_importing_it_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_training_and_indexing_need_no_web_or_database_packages() -> None:
    blocked = ["fastapi", "starlette", "sqlalchemy", "alembic", "psycopg", "uvicorn", "jinja2", "plotly"]
    code = (
        "import sys\n"
        f"sys.modules.update({{name: None for name in {blocked!r}}})\n"
        "import sae_core.train, sae_core.index, sae_core.probe, sae_core.demo_lm.train\n"
    )
    # jinja2 is torch's own dependency in some builds; what must not be needed is ours.
    code = code.replace("'jinja2', ", "")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_module_prints_or_loads_anything_when_imported() -> None:
    code = "import sae_core.records, sae_core.config, sae_core.errors, sae_core.metrics, sae_core.corpus"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
