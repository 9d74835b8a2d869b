#!/usr/bin/env python3
"""Holds what ptxas said of every kernel against the table in budgets.json.

Usage: gates.py BUILD [--write]. BUILD is a build directory with a CUDA backend. For each kernel and compute capability: no
stack, no spills, no more registers than its budget, and none of the warnings that mean serialised tensor instructions. For
each source: the instructions that it was written for are in its PTX. --write raises or lowers the register budgets to what
was found (rounded up to a multiple of 8), adds new kernels and drops those that are gone; look at the difference before
you keep it.
"""

import argparse
import json
import math
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TABLE = pathlib.Path(__file__).with_name("budgets.json")

# ptxas warnings: setmaxnreg ignored, wgmma serialised or waits injected.
FORBIDDEN = re.compile(r"\bC75(08|1[0-9])\b")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def demangle(names):
    """{mangled: readable name without its parameters}"""
    names = sorted(names)
    output = subprocess.run(["c++filt", *names], check=True, capture_output=True, text=True).stdout.splitlines()
    readable = {}
    for name, text in zip(names, output):
        text = re.sub(r"^void ", "", text).replace("shoal::cuda::", "").replace("(anonymous namespace)::", "")
        text = re.sub(r"\((?:int|bool|unsigned int)\)", "", text)
        depth, end = 0, len(text)
        for i, character in enumerate(text):  # up to the parameter list, which no template bracket encloses
            depth += (character == "<") - (character == ">")
            if character == "(" and depth == 0:
                end = i
                break
        readable[name] = text[:end]
    return readable


def read_log(path):
    """[(mangled kernel, architecture, {stack, stores, loads, registers})] and the forbidden lines of one log"""
    kernels, forbidden, current = [], [], None
    for line in path.read_text().splitlines():
        if FORBIDDEN.search(line):
            forbidden.append(line.strip())
        if match := ENTRY.search(line):
            current = {}
            kernels.append((match.group(1), match.group(2), current))
        elif current is not None and (match := FRAME.search(line)):
            current["stack"], current["stores"], current["loads"] = map(int, match.groups())
        elif current is not None and (match := USED.search(line)):
            current["registers"] = int(match.group(1))
    return kernels, forbidden


def ptx_of(nvcc, compiler, source):
    command = [nvcc, f"-ccbin={compiler}", "-std=c++20", "--expt-relaxed-constexpr", "-O3", f"-I{ROOT}", "-arch=compute_90a", "-ptx", str(source),
               "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cached(build, name):
    """A value of the build's CMake cache."""
    match = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    return match.group(1) if match else None


def check_instructions(table, build, violations):
    nvcc, compiler = cached(build, "NVCC"), cached(build, "CMAKE_CXX_COMPILER")
    for source in sorted((ROOT / "kernels/cuda").glob("*.cu")):
        wanted = table["instructions"].get(source.stem, [])
        ptx = ptx_of(nvcc, compiler, source) if wanted else ""
        for instruction in wanted:
            if instruction not in ptx:
                violations.append(f"{source.name}: no {instruction} in its PTX")


def check_kernels(found, table, violations):
    for name, architecture, use in found:
        where = f"{name}, sm_{architecture}"
        budget = table["registers"].get(name)
        if use.get("stack") or use.get("stores") or use.get("loads"):
            violations.append(f"{where}: {use['stack']} bytes of stack, {use['stores']} spilled, {use['loads']} loaded")
        if budget is None:
            violations.append(f"{where}: not in {TABLE.name}")
        elif use["registers"] > budget:
            violations.append(f"{where}: {use['registers']} registers, at most {budget}")
    for name in sorted(set(table["registers"]) - {name for name, _, _ in found}):
        violations.append(f"{name}: in {TABLE.name}, but there is no such kernel")


def most_registers(found):
    """{kernel: the most registers on any architecture}"""
    most = {}
    for name, _, use in found:
        most[name] = max(most.get(name, 0), use["registers"])
    return dict(sorted(most.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    logs = sorted((arguments.build / "kernels/cuda").glob("*.ptxas"))
    if not logs:
        print("gates: this build has no CUDA backend")
        return 1
    table = json.loads(TABLE.read_text())
    entries, violations = [], []
    for log in logs:
        kernels, forbidden = read_log(log)
        entries += kernels
        violations += [f"{log.stem}.cu: {line}" for line in forbidden]
    names = demangle({mangled for mangled, _, _ in entries})
    found = [(names[mangled], architecture, use) for mangled, architecture, use in entries]
    if arguments.write:
        table["registers"] = {name: math.ceil(used / 8) * 8 for name, used in most_registers(found).items()}
        TABLE.write_text(json.dumps(table, indent=2) + "\n")
    check_kernels(found, table, violations)
    check_instructions(table, arguments.build, violations)
    print(f"{'kernel':60} {'registers':>9} {'budget':>6}")
    for name, used in most_registers(found).items():
        print(f"{name:60} {used:9} {table['registers'].get(name, 0):6}")
    for violation in violations:
        print(violation)
    architectures = {architecture for _, architecture, _ in found}
    print(f"gates: {len(names)} kernels, {len(architectures)} compute capabilities, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
