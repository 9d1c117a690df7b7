"""How many parameters does a model have, and where are they?

python examples/count_parameters.py [MODEL]
"""

import sys

import weightkit as wk


def main(path: str = "demo") -> None:
    counts = wk.open(path).counts()
    print(f"{counts.total:,} parameters, {counts.bytes / 1e6:.1f} MB in the files\n")
    for role, number in counts.by_role.items():
        print(f"{role:<18}{number:>16,}  {number / counts.total:6.1%}  {counts.formulas[role]}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
