"""What did training change? Two checkpoints of one model, weight by weight, summed up by role.

python examples/diff_checkpoints.py [A B]
"""

import sys

import weightkit as wk


def main(a: str = "demo:early", b: str = "demo") -> None:
    before, after = wk.open(a), wk.open(b)
    found = wk.diff(before, after)
    if found.identical:
        print("identical")
        return
    rows = found.frame()
    rows["role"] = [str(before.registry[address].role) for address in rows["address"]]
    print(rows.groupby("role", sort=False)[["relative_l2", "cosine", "changed_fraction"]].mean().round(4).to_string())
    most = max(found.changed, key=lambda row: row.relative_l2)
    print(f"\n{len(rows)} of {len(rows) + found.unchanged} weights differ, {most.address} the most")


if __name__ == "__main__":
    main(*sys.argv[1:3])
