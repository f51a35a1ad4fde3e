"""Asks what weaknesses are known of the packages in requirements.lock: `make audit`.

pip-audit, which does it, lives in an environment of its own, so that it changes nothing of the project's. Exit code 0:
none is known; 1: some are, a line each; 2: nobody could be asked, and why.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".cache" / "audit"
PYTHON = ENVIRONMENT / "bin" / "python"
LOCK = ROOT / "requirements.lock"


def main() -> int:
    if _ran(["-m", "pip_audit", "--version"]).returncode:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        installed = _ran(["-m", "pip", "install", "--quiet", "--retries", "1", "pip-audit"])
        if installed.returncode:
            return _unasked("pip-audit cannot be installed", installed)
    asked = _ran(["-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--no-deps", "--format", "json"])
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        return _unasked("pip-audit got no answer", asked)
    weak = [(package, found) for package in packages for found in package.get("vulns", ())]
    for package, found in weak:
        fixed = ", ".join(found.get("fix_versions", ())) or "no version yet"
        sys.stdout.write(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}\n")
    sys.stdout.write(f"saescope: {len(weak)} weaknesses are known of {len(packages)} packages\n")
    return 1 if weak else 0


def _ran(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run([str(PYTHON), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:  # there is no such environment yet
        return subprocess.CompletedProcess(arguments, 1, "", str(error))


def _unasked(what: str, done: "subprocess.CompletedProcess[str]") -> int:
    reason = (done.stderr.strip() or "no reason given").splitlines()[-1].strip().rstrip(".")
    sys.stderr.write(
        f"saescope: nothing was audited: {what} ({reason}); run `make audit` again where the package index answers.\n"
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
