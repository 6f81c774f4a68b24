"""Size of an environment's packages, pip left out: `python benchmarks/installed_size.py VENV`. Fails above 250 MiB."""

import sys
from pathlib import Path

LIMIT_MIB = 250
LEFT_OUT = ("pip", "setuptools", "wheel", "_distutils_hack")


def main() -> int:
    (site,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    folders = [p for p in site.iterdir() if p.name.split("-")[0] not in LEFT_OUT]
    sizes = {
        p.name: sum(f.stat().st_size for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()) for p in folders
    }
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"{size / 2**20:8.1f} MiB  {name}")
    total = sum(sizes.values()) / 2**20
    print(f"{total:8.1f} MiB  in all (limit {LIMIT_MIB})")
    return int(total > LIMIT_MIB)


if __name__ == "__main__":
    sys.exit(main())
