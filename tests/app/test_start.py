"""Starting the dashboard is quick: neither torch nor transformers nor plotly is imported by it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_importing_the_app_loads_nothing_heavy() -> None:
    code = (
        "import sys, app.main; "
        "heavy = {'torch', 'transformers', 'plotly', 'numpy', 'pyarrow'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
