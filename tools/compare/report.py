"""From the records of measurements to Markdown: medians of medians, ratios, and their section of BENCHMARKS.md.

A record is a JSON object with a `kind`: `session` begins a run of the comparison; `check` says whether a workload computes
the same on both sides; `skip` names a program that could not run; `time` is one program in one round.
"""
import statistics

METRICS = {
    "step": ("Training step", "ms"),
    "sample": ("Sampling step", "ms"),
    "memory": ("Peak memory of training", "MiB"),
}


def reading(record, metric):
    """A `time` record's number; None where it has none."""
    if metric == "memory":
        memory = record.get("peak_memory_bytes")
        return None if memory is None else memory / 2**20
    return record[metric]["median_ms"]


def select(records):
    """What the tables are made of.  Where a workload was run several times, the last session that has it counts alone, so
    that only what ran interleaved is compared."""
    sessions, current = [], None
    for r in records:
        if r["kind"] == "session":
            current = dict(about=r, records=[])
            sessions.append(current)
        elif current is None:
            raise ValueError("records without a session before them")
        else:
            current["records"].append(r)
    workloads = {}
    for session in sessions:
        for r in session["records"]:
            w = workloads.get(r["workload"])
            if w is None or w["session"] is not session["about"]:
                w = workloads[r["workload"]] = dict(session=session["about"], times={}, check=None, skipped={})
            if r["kind"] == "time":
                w["times"].setdefault(r["program"], {})[r["round"]] = r
            elif r["kind"] == "check":
                w["check"] = r
            elif r["kind"] == "skip":
                w["skipped"][r["program"]] = r["why"]
    return workloads


def summary(times, metric):
    """Of each program: median of its rounds, the least, the most, and the readings by round."""
    found = {}
    for program, rounds in times.items():
        by_round = {n: reading(r, metric) for n, r in rounds.items()}
        by_round = {n: v for n, v in by_round.items() if v is not None}
        if by_round:
            v = by_round.values()
            found[program] = dict(median=statistics.median(v), low=min(v), high=max(v), rounds=by_round)
    return found


def best_eager(times, found):
    """The PyTorch variant in plain f32 with the least median; None without one."""
    eager = [p for p in found if next(iter(times[p].values()))["eager"]]
    return min(eager, key=lambda p: found[p]["median"], default=None)


def number(v):
    return f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" if v >= 1 else f"{v:.2g}"


def ratio_cells(workload, metric):
    """denoir, the best of PyTorch, the ratio, and the least and the most ratio of a round; None where one is missing."""
    found = summary(workload["times"], metric)
    best = best_eager(workload["times"], found)
    if "denoir" not in found or best is None:
        return None
    ours, theirs = found["denoir"], found[best]
    ratios = [ours["rounds"][n] / theirs["rounds"][n] for n in ours["rounds"] if n in theirs["rounds"]]
    spread = f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else "-"
    cell = lambda s: f"{number(s['median'])} ({number(s['low'])} - {number(s['high'])})"
    return cell(ours), f"{cell(theirs)} {best.removeprefix('PyTorch ')}", f"**{ours['median'] / theirs['median']:.2f}**", spread


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def section(workloads):
    """The Markdown of all tables of one machine and device."""
    parts = []
    abouts = []
    for w in workloads.values():
        if w["session"] not in abouts:
            abouts.append(w["session"])
    last = abouts[-1]
    parts.append(f"### {last['machine']}\n")
    seen = {}  # of each program, in the order of the sessions
    for about in abouts:
        for program, version in about["versions"].items():
            if version not in seen.setdefault(program, []):
                seen[program].append(version)
    versions = "; ".join(f"{program} {', '.join(versions)}" for program, versions in seen.items())
    parts.append(f"{last['device']}, {last['threads']} threads for every program. {versions}.\n")
    for about in abouts:
        names = ", ".join(n for n, w in workloads.items() if w["session"] is about)
        clip = "" if about["clip"] else " PyTorch without clipping of gradients."
        parts.append(f"{about['date']}, {about['rounds']} rounds ({names}):{clip}\n\n    {about['command']}\n")

    for metric, (title, unit) in METRICS.items():
        rows = []
        for name, w in workloads.items():
            cells = ratio_cells(w, metric)
            if cells:
                batch = next(iter(w["times"]["denoir"].values()))["batch"]
                rows.append([f"`{name}`", str(batch), *cells])
        if rows:
            parts.append(f"**{title}**, {unit}: median of the rounds' medians (least - most)\n")
            parts.append(table(["workload", "batch", "denoir", "PyTorch, its best in f32", "ratio", "ratio by round"], rows))

    programs = []
    for w in workloads.values():
        programs += [p for p in w["times"] if p != "denoir" and p not in programs]
    for metric, (title, unit) in METRICS.items():
        rows = []
        for name, w in workloads.items():
            found = summary(w["times"], metric)
            if "denoir" in found and len(found) > 1:
                cell = lambda p: f"{found['denoir']['median'] / found[p]['median']:.2f} ({number(found[p]['median'])})"
                rows.append([f"`{name}`", *[cell(p) if p in found else "-" for p in programs]])
        if rows:
            parts.append(f"{title}, denoir over each program (its {unit}):\n")
            parts.append(table(["workload", *programs], rows))

    rows = []
    for name, w in workloads.items():
        c = w["check"]
        if c:
            worst = c["worst"]
            rows.append([f"`{name}`", "the same" if c["passed"] else "**not the same**, not timed", str(c["tensors"]),
                         f"{worst['error']:.1e} ({worst['name']})", f"{worst['pytorch']:.1e}"])
    if rows:
        parts.append("Output, loss and every gradient from the same weights and inputs, against PyTorch in f64; the worst by its "
                     f"limit ({last['factor']:g} times PyTorch's own f32 error, or 1e-5):\n")
        parts.append(table(["workload", "verdict", "tensors", "denoir's error", "PyTorch's f32 error"], rows))

    notes = []
    for name, w in workloads.items():
        for program, why in w["skipped"].items():
            notes.append(f"- `{name}`, {program}: not run: {why}")
        loaded = [f"{p}, round {n + 1}: {r['others']}" for p, rounds in w["times"].items() for n, r in rounds.items()
                  if r["others"] is not None and r["others"] > w["session"]["load_limit"]]
        if loaded:
            notes.append(f"- `{name}`: other programs used more than {w['session']['load_limit']} cores during "
                         f"{len(loaded)} of {sum(map(len, w['times'].values()))} runs ({'; '.join(loaded[:4])}"
                         f"{'; ...' if len(loaded) > 4 else ''})")
    if notes:
        parts.append("\n".join(notes) + "\n")
    return "\n".join(parts)


def markers(key):
    return f"<!-- tools/compare: {key} -->", f"<!-- end of tools/compare: {key} -->"


def splice(text, key, body):
    """`text` with the section of `key` replaced, or added at the end."""
    begin, end = markers(key)
    block = f"{begin}\n{body.strip()}\n{end}"
    if begin in text:
        head, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"there is a line '{begin}' but none that says '{end}' after it")
        return head + block + rest.split(end, 1)[1]
    return (text.rstrip("\n") + "\n\n" if text.strip() else "") + block + "\n"


# ------------------------------------------------------------------------------------------------------------ self-test
def self_test():
    about = dict(kind="session", machine="A machine", device="cpu", threads=2, versions={"denoir": "0"}, date="today",
                 rounds=3, command="run", clip=True, factor=2.0, load_limit=0.1)

    def time(program, n, ms, eager=False, others=0.0, memory=2**20):
        t = dict(median_ms=ms)
        return dict(kind="time", workload="w", program=program, round=n, eager=eager, others=others, batch=2, step=t,
                    sample=t, peak_memory_bytes=memory)

    records = [about]
    for n, (ours, slow, fast) in enumerate([(10, 40, 20), (30, 40, 10), (12, 40, 16)]):
        records += [time("denoir", n, ours), time("PyTorch slow", n, slow, eager=True), time("PyTorch fast", n, fast, eager=True),
                    time("Burn", n, 1, others=0.5, memory=None)]
    records.append(dict(kind="check", workload="w", passed=True, tensors=3, worst=dict(name="out", error=1e-6, pytorch=2e-6)))
    records.append(dict(kind="skip", workload="w", program="Meganeura", why="it broke"))
    chosen = select(records)
    ours, theirs, ratio, spread = ratio_cells(chosen["w"], "step")
    # Medians 12 and 16: a mean would be 17 and 15.3, and Burn is faster but no PyTorch.
    assert (ours, theirs) == ("12 (10 - 30)", "16 (10 - 20) fast"), (ours, theirs)
    assert (ratio, spread) == ("**0.75**", "0.50 - 3.00"), (ratio, spread)
    assert "Burn" not in summary(chosen["w"]["times"], "memory")
    text = section(chosen)
    for part in ["| `w` | 2 | 12 (10 - 30) |", "0.30 (40)", "it broke", "more than 0.1 cores during 3 of 12", "1.0e-06 (out)"]:
        assert part in text, (part, text)
    failed = section(select([*records[:-2], dict(records[-2], passed=False)]))
    assert "**not the same**" in failed

    # A later session replaces a workload, with all that belonged to it.
    later = select([*records, dict(about, date="tomorrow"), time("denoir", 0, 1), time("PyTorch fast", 0, 2, eager=True)])
    assert ratio_cells(later["w"], "step")[2] == "**0.50**" and not later["w"]["skipped"]

    # Sessions of other workloads may be of other versions.
    other = dict(about, date="tomorrow", versions={"denoir": "1", "Burn": "2"})
    both = section(select([*records, other, dict(time("denoir", 0, 1), workload="v")]))
    assert "denoir 0, 1; Burn 2." in both, both

    page = splice("# Page\n", "a", "one")
    page = splice(page, "b", "two")
    assert splice(page, "a", "one") == page and splice(page, "b", "two") == page
    changed = splice(page, "a", "three")
    assert "three" in changed and "one" not in changed and "two" in changed and changed.startswith("# Page\n")
    try:
        splice(markers("a")[0], "a", "x")
    except ValueError:
        pass
    else:
        raise AssertionError("a section without an end went unseen")
    print("report: passed")


if __name__ == "__main__":
    self_test()
