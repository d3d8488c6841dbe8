#!/usr/bin/env python3
"""Runs `marlin bench` and its peers' `llama-bench` alternately on the same files and prints a table.

`compare.sh` calls this with everything built; see its --help. A round is one run of every side on one file,
one right after the other, beginning with another side each time, so that a slow minute of the machine falls
on all of them. Rounds are kept in a file named after what was measured: an interrupted run goes on with the
next round, and another binary or setting starts anew.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import median

NATIVE = "native"


class Side:
    """One program: `[GROUP:]NAME=COMMAND`. Sides of one group are compared with each other."""

    def __init__(self, text):
        label, separator, command = text.partition("=")
        if not separator or not command.strip():
            raise argparse.ArgumentTypeError(f"'{text}' is not [GROUP:]NAME=COMMAND")
        group, colon, name = label.rpartition(":")
        self.group, self.name = (group if colon else NATIVE), name
        self.label, self.command = label, shlex.split(command)

    def measure(self, model, options):
        """Tokens per second of one run, and for marlin its shares of this machine's limits."""
        shape = ["-m", str(model), "-p", str(options.prompt), "-n", str(options.decode),
                 "-t", str(options.threads), "-r", "1"]
        if self.name == "marlin":
            report = run([self.command[0], *self.command[1:], "bench", *shape, "--json"])
            keys = ("decode_tok_s", "prefill_tok_s", "decode_floor_pct", "read_gb_s")
            # Nothing with scales comes near the peak of a matrix unit.
            peak = report.get("prefill_vector_peak_pct", report["prefill_peak_pct"])
            return {key: report[key] for key in keys} | {"prefill_peak_pct": peak}
        tests = run([*self.command, *shape, "-o", "json"])
        speeds = {test["n_prompt"] > 0: test["avg_ts"] for test in tests}
        return {"decode_tok_s": speeds.get(False), "prefill_tok_s": speeds.get(True)}


def run(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"alternate.py: {shlex.join(command)}: {error}")
    if done.returncode != 0:
        end = "\n".join(done.stderr.strip().splitlines()[-5:])
        sys.exit(f"alternate.py: {shlex.join(command)} ended with {done.returncode}:\n{end}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        sys.exit(f"alternate.py: {shlex.join(command)} printed no JSON ({error}): {done.stdout[:200]!r}")


def fingerprint(options):
    """Changes whenever results would not be comparable: a program, a file's size or a setting."""
    parts = [options.prompt, options.decode, options.threads, platform.node()]
    for side in options.side:
        parts.append([side.label, side.command])
        # llama-bench is a thin program over shared libraries beside it.
        for word in side.command:
            if os.path.sep in word and os.path.isfile(word):
                beside = sorted(Path(word).parent.glob("*.so*")) if side.name != "marlin" else []
                parts += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in [Path(word), *beside]]
    parts += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in options.model]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def kept_rounds(path):
    """Complete rounds by file; a line cut off by an interruption is passed over."""
    rounds = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        rounds.setdefault(record["file"], []).append(record["sides"])
    return rounds


def measure(options, path):
    rounds = kept_rounds(path)
    for number in range(options.rounds):
        for model in options.model:
            done = rounds.setdefault(model.name, [])
            if len(done) > number:
                continue
            print(f"round {number + 1} of {options.rounds}: {model.name}", file=sys.stderr)
            first = number % len(options.side)
            order = options.side[first:] + options.side[:first]
            sides = {side.label: side.measure(model, options) for side in order}
            done.append(sides)
            with path.open("a") as out:
                out.write(json.dumps({"file": model.name, "sides": sides}) + "\n")
    return {file: done[:options.rounds] for file, done in rounds.items()}


def spread(values):
    middle, low, high = median(values), min(values), max(values)
    digits = 0 if middle >= 1000 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def table(options, rounds):
    peers = list(dict.fromkeys(side.name for side in options.side if side.name != "marlin"))
    tests = [("decode", f"tg{options.decode}", "decode_floor_pct", "floor")] if options.decode else []
    tests += [("prefill", f"pp{options.prompt}", "prefill_peak_pct", "peak")] if options.prompt else []
    head = ["file", "instructions", "test", "marlin", *peers, "× the better", "marlin reaches"]
    rows = [head, [":--"] * 3 + ["--:"] * (len(head) - 3)]
    for group in dict.fromkeys(side.group for side in options.side):
        sides = {side.name: side.label for side in options.side if side.group == group}
        for model in options.model:
            done = rounds[model.name]
            for test, shape, share, limit in tests:
                def speeds(name):
                    return [sides_of[sides[name]][f"{test}_tok_s"] for sides_of in done]
                ours = speeds("marlin")
                theirs = {name: speeds(name) for name in peers if name in sides}
                better = max(median(values) for values in theirs.values())
                cells = [spread(theirs[name]) if name in theirs else "–" for name in peers]
                reached = median(sides_of[sides["marlin"]][share] for sides_of in done)
                rows.append([model.stem, group, shape, spread(ours), *cells,
                             f"{median(ours) / better:.2f}", f"{reached:.1f} % of the {limit}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def description(options, rounds):
    """What was measured where; the bandwidth is the one that marlin measured beside every run."""
    marlin = next(side for side in options.side if side.name == "marlin")
    reads = [sides[marlin.label]["read_gb_s"] for done in rounds.values() for sides in done]
    count = min(len(done) for done in rounds.values())
    return (f"{processor()}, {os.cpu_count()} cores, {options.threads} threads each; read bandwidth "
            f"{spread(reads)} GB/s.\nTokens per second: median of {count} alternating rounds "
            f"(least–greatest); ratios are of medians. The floor is the time that reading weights, keys and "
            f"values takes\nat the read bandwidth measured in the same run; the peak is the measured rate of "
            f"the vector unit's integer multiply-adds.")


def count(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=Side, action="append", required=True, help="[GROUP:]NAME=COMMAND")
    parser.add_argument("--results", type=Path, required=True, help="folder to keep rounds in")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--prompt", type=count, default=512)
    parser.add_argument("--decode", type=count, default=128)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rounds")
    parser.add_argument("model", type=Path, nargs="+")
    options = parser.parse_args()
    if not options.rounds or not options.prompt + options.decode:
        parser.error("nothing to measure")
    for model in options.model:
        if not model.is_file():
            parser.error(f"no file {model}")
    for group in {side.group for side in options.side}:
        names = [side.name for side in options.side if side.group == group]
        if "marlin" not in names or len(names) < 2:
            parser.error(f"group {group} needs marlin and a peer, and has {', '.join(names)}")
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}); numbers will be off", file=sys.stderr)
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{fingerprint(options)}.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    rounds = measure(options, path)
    print(description(options, rounds), table(options, rounds), sep="\n\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("alternate.py: interrupted; complete rounds are kept")
