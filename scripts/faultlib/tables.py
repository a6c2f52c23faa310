"""What rows came to, as lines, JSON and rows of a table in the documents. No script of its own."""

import datetime
import json
import os
import re
import subprocess

import report
from cluster import Failure
from faultlib import Result, middle

FORMAT = "quorate-faults-1"
SECTION = "faults"
# Behind the name of a row of which the runs are known by the table alone.
BEFORE = ", before"
# In front of what people have put into a result.
BY_HAND = "; by hand: "
HEAD = ["row", "what was done", "how often", "histories", "result", "away s", "ready s", "when, with what"]
RESULT, WHEN = HEAD.index("result"), HEAD.index("when, with what")


def about(options):
    """With what a run was made."""
    version = subprocess.run([options.quorate, "--version"], capture_output=True, text=True, timeout=30).stdout.strip()
    return {
        "format": FORMAT, "date": datetime.date.today().isoformat(), "seed": options.seed, "version": version,
        "build": options.build or ("another binary" if options.binary_given else report.commit()), "command": report.command_line(), "cores": os.cpu_count(), "kernel": os.uname().release,
        "shared": options.shared, "short": options.short,
    }


def save(file, options, results):
    file.write_text(json.dumps(about(options) | {"rows": [result.to_json() for result in results]}, indent=1))


def load(file):
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise Failure(f"{file} can't be read: {error}")
    if data.get("format") != FORMAT:
        raise Failure(f"{file} is no result of this script (format {data.get('format')}, it must be {FORMAT})")
    return data


def added(runs):
    """Rows of several runs, those of one row as one."""
    rows = {}
    for run in runs:
        for data in run["rows"]:
            result = Result.from_json(data)
            if result.id in rows and result.verdict != "skipped" and rows[result.id].verdict != "skipped":
                rows[result.id].add(result)
            elif result.id not in rows or rows[result.id].verdict == "skipped":
                rows[result.id] = result
    return list(rows.values())


def counts(result):
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in result.counts.items() if count)


def verdict(result):
    if result.verdict == "skipped":
        return f"skipped: {result.problem}"
    if result.verdict == "failed":
        return f"**failed**: {result.problem}"
    word = "passed" if result.trials >= result.goal else f"passed, of {result.goal:,} planned"
    if result.skipped:
        word = f"**partly**: {word}; skipped: {'; '.join(result.skipped)}"
    return f"{word}; hashes compared {result.hashes:,} times" if result.hashes else word


def seconds(values):
    return f"{middle(values):.1f}, at most {max(values):.1f}" if values else "–"


def line(result):
    if result.verdict == "skipped":
        return f"skipped: {result.problem}"
    return (f"{verdict(result)}; {result.trials:,} {result.unit} ({counts(result)}) in {result.seconds:.0f} s; {result.operations:,} operations, "
            f"{result.unknown:,} unknown; away s {seconds(result.away_seconds)}; ready s {seconds(result.ready_seconds)}"
            + "".join(f"\n      {note}" for note in result.notes))


def cell(text):
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def cells(result, runs):
    often = f"{result.trials:,} {result.unit}: {counts(result)}" if result.verdict != "skipped" else "–"
    judged = f"{result.histories:,} with {result.operations:,} operations, {result.unknown:,} unknown" if result.histories else "–"
    told = [verdict(result), *result.notes]
    if result.away_late:
        told.append(f"{result.away_late} times away for more than 3 election timeouts")
    mine = [run for run in runs if "rows" not in run or any(row["id"] == result.id and row["verdict"] == result.verdict for row in run["rows"])]
    when = "; ".join(dict.fromkeys(
        f"{run['date']}, `{again(run, result)}`, {run['build']}, {run['cores']} cores" + (", shared with compilers" if run["shared"] else "") for run in mine))
    return [cell(text) for text in (result.id, result.fault, often, judged, "; ".join(told), seconds(result.away_seconds), seconds(result.ready_seconds), when)]


def again(run, result):
    """The command that does the same again, without what only says where things lie."""
    if not run["command"].startswith("scripts/faults"):
        return run["command"].split(" --quorate")[0]
    goal = next((row["goal"] for row in run.get("rows", []) if row["id"] == result.id), result.goal)
    return f"scripts/faults {'--short' if run.get('short') else '--long'} --only {result.id} --count {goal} --seed {run['seed']}"


def text(results, runs):
    return report.table(HEAD, [cells(result, runs) for result in results])


def into(document, results, runs, beside=()):
    """Rows into the table of a document, in the place of those of the same name.

    What was put into a result by hand, behind "by hand: ", stays as long as the new row names the same runs. A row in `beside`
    is of runs of which there is no JSON any more: it stays as it is, named "before", and nothing is added up.
    """
    whole = document.read_text() if document.exists() else ""
    found = re.search(rf"<!-- {SECTION}: begin.*?<!-- {SECTION}: end -->", whole, re.S)
    rows = {}
    for old in found[0].splitlines() if found else []:
        if match := re.match(rf"\| ([A-Z]\d(?:{BEFORE})?) \|", old):
            rows[match[1]] = old
    for result in results:
        new = cells(result, runs)
        if old := rows.get(result.id):
            if result.id in beside:
                if result.id + BEFORE in rows:
                    raise Failure(f"{result.id} stands there twice already: give --from the JSON of the newer one as well")
                rows[result.id + BEFORE] = old.replace(result.id, result.id + BEFORE, 1)
            new[RESULT] += by_hand(cells_of(old), new)
        rows[result.id] = "| " + " | ".join(new) + " |"
    lines = [report.table(HEAD, []), *(rows[name] for name in sorted(rows, key=order))]
    report.write_section(document, SECTION, "\n".join(lines))


def cells_of(row):
    return re.split(r"(?<!\\) \| ", row.strip().removeprefix("| ").removesuffix(" |"))


def by_hand(old, new):
    _, mark, text = old[RESULT].partition(BY_HAND)
    return mark + text if mark and old[WHEN] in new[WHEN] else ""


def order(name):
    return "NPDKCML".index(name[0]), name


def show_rows(rows):
    for row in rows:
        print(f"{row.id}  {row.fault}")
        print(f"    --short: {row.short[0]} {row.unit} or {row.short[1]} s; --long: {row.long[0]} or {row.long[1]} s")
