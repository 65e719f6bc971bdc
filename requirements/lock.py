#!/usr/bin/env python3.11
"""Write the hashes of a lock file, and add packages to it.

    python3.11 requirements/lock.py requirements/cpu.txt                    # after editing a pin: fill in its hashes
    python3.11 requirements/lock.py requirements/cpu.txt --add matplotlib   # and what it needs, under the pins there
    python3.11 requirements/lock.py requirements/dev.txt --add hypothesis --base requirements/cpu.txt

A lock file is its own input: the pins `name==version` are read, old hashes are dropped, the leading comment is kept.
pip is asked what it would install (`--dry-run --report`) from the public index alone: local folders and mirrors in
pip's configuration are left out, so that the hashes are those everybody gets. What --add brings in is for review: a
package that needs torch also brings torch and triton, which cpu.txt leaves out. Run it on Linux x86-64 with Python
3.11; an index may serve whole wheels for a dry run, so the CUDA lock can cost several gigabytes of download.

Two files are recorded where they differ: the one pip picks here, and the one it picks with glibc 2.31, the oldest the
locks support (llguidance has no wheel for less): a hash of this machine's choice alone would refuse the other.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)\s*(?P<op>={2,3})\s*(?P<version>[^\s;\\]+)")
OLDEST_GLIBC = 31  # minor version: 2.31
ABIS = ("cp311", "abi3", "none")
ELSEWHERE = {"PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"}  # would point pip at other files

Hashes = dict[str, set[str]]  # canonical package name -> sha256 of every file that may be chosen


def canonical(name: str) -> str:
    """The form in which two spellings of a package's name are equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return a lock's leading comment lines and its pins by canonical name, each as written (`name==version`)."""
    lines = path.read_text().splitlines() if path.exists() else []
    header = []
    for line in lines:
        if not line.startswith("#"):
            break
        header.append(line)
    found = (PIN.match(line) for line in lines)
    return header, {canonical(m["name"]): f"{m['name']}{m['op']}{m['version']}" for m in found if m}


def old_platforms(scratch: Path) -> list[str]:
    """Arguments that make pip choose as Python 3.11 on Linux x86-64 with the oldest glibc would."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(OLDEST_GLIBC, 4, -1)]
    tags += [f"manylinux{year}_x86_64" for year in (2014, 2010, 1)]
    # pip wants a target folder with foreign platforms; a dry run leaves it empty.
    args = ["--target", str(scratch / "target"), "--only-binary", ":all:"]
    args += ["--python-version", "3.11", "--implementation", "cp"]
    for tag in tags:
        args += ["--platform", tag]
    for abi in ABIS:
        args += ["--abi", abi]
    return args


def resolve(python: Path, scratch: Path, requirements: list[str], *args: str) -> list[dict]:
    """Return the `install` entries of pip's report for `requirements`. Raises SystemExit with pip's last lines."""
    wanted, report = scratch / "wanted.txt", scratch / "report.json"
    wanted.write_text("\n".join(requirements) + "\n")
    public_only = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report, *args]
    ran = subprocess.run(
        [*map(str, command), "-r", str(wanted)],
        env=public_only | {"PIP_CONFIG_FILE": os.devnull},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit("lock: pip could not resolve:\n" + "\n".join(ran.stderr.splitlines()[-15:]))
    return json.loads(report.read_text())["install"]


def collect(installs: list[dict], into: Hashes) -> None:
    for entry in installs:
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        into.setdefault(canonical(entry["metadata"]["name"]), set()).add(digest)


def write_lock(path: Path, header: list[str], pins: dict[str, str], hashes: Hashes) -> None:
    lines = list(header)
    for name in sorted(pins):
        lines.append(" \\\n".join([pins[name], *(f"    --hash=sha256:{digest}" for digest in sorted(hashes[name]))]))
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--add", nargs="+", default=[], metavar="REQUIREMENT")
    parser.add_argument("--base", type=Path, help="a lock installed beforehand: its pins hold and are not repeated")
    options = parser.parse_args()

    header, pins = read_lock(options.lock)
    base = read_lock(options.base)[1] if options.base else {}
    hashes: Hashes = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        venv.create(scratch / "venv", with_pip=True)
        python = scratch / "venv/bin/python"
        if options.add:
            constraints = scratch / "constraints.txt"
            constraints.write_text("\n".join((base | pins).values()) + "\n")
            for entry in resolve(python, scratch, options.add, "--constraint", str(constraints)):
                name, version = entry["metadata"]["name"], entry["metadata"]["version"]
                if canonical(name) not in base:
                    pins.setdefault(canonical(name), f"{name}=={version}")
        here = resolve(python, scratch, list(pins.values()), "--no-deps")
        collect(here, hashes)
        built = {canonical(e["metadata"]["name"]) for e in here if not e["download_info"]["url"].endswith(".whl")}
        wheels = [pin for name, pin in pins.items() if name not in built]
        collect(resolve(python, scratch, wheels, "--no-deps", *old_platforms(scratch)), hashes)
    write_lock(options.lock, header, pins, hashes)
    print(f"lock: {options.lock}: {len(pins)} pins, {sum(map(len, hashes.values()))} files")


if __name__ == "__main__":
    main()
