"""Prints the table of a study: for each project the mean over seeds at its best learning rate.

    python table.py RESULTS.jsonl
"""
import json
import sys
from collections import defaultdict


def mean(rows: list[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def spread(rows: list[dict], key: str) -> float:
    return max(row[key] for row in rows) - min(row[key] for row in rows)


def best(rows: list[dict]) -> list[dict]:
    """The seeds of the setting that was run with most of them, and among those the best."""
    settings = defaultdict(list)
    for row in rows:
        settings[row["lr"], row["window"]].append(row)
    most = max(len(rows) for rows in settings.values())
    return min((r for r in settings.values() if len(r) == most), key=lambda r: mean(r, "fvu_at_k"))


def main() -> None:
    groups = defaultdict(list)
    with open(sys.argv[1]) as file:
        for row in map(json.loads, file):
            groups[row["data"], row["arch"], row["project"]].append(row)
    print("| rows | architecture | project | LR | FVU at L0 16 | FVU as used | L0 as used | never fire | recovered |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (data, arch, project), rows in sorted(groups.items(), key=lambda g: (g[0][0] != "planted", g[0])):
        rows = best(rows)
        recovered = f"{mean(rows, 'recovered'):.1%}" if data == "planted" else ""
        window = f", window {rows[0]['window']}" if rows[0]["window"] else ""
        print(
            f"| {data} | {arch} | {project} | {rows[0]['lr']:g}{window} "
            f"| {mean(rows, 'fvu_at_k'):.4f} ± {spread(rows, 'fvu_at_k') / 2:.4f} | {mean(rows, 'fvu'):.4f} "
            f"| {mean(rows, 'l0'):.1f} | {mean(rows, 'dead'):.1%} | {recovered} |"
        )


if __name__ == "__main__":
    main()
