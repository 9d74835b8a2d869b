#!/usr/bin/env python3
"""Holds what nvcc and ptxas said of every kernel against the table in budgets.json.

Usage: gates.py BUILD [--write]. BUILD is a build directory with a CUDA backend. For each kernel and compute capability: no
stack, no spills, no more registers than its budget, and none of the warnings that mean serialised tensor instructions. For
each kernel: no more shared memory than its budget. For each source: the instructions that it was written for are in its
PTX. --write raises or lowers the budgets to what was found (registers rounded up to a multiple of 8), adds new kernels and
drops those that are gone; look at the difference before you keep it.
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
# In PTX: a kernel, and the size of its dynamic shared memory (SharedMemory() in kernels/cuda/ptx.cuh).
PTX_ENTRY = re.compile(r"\.entry (\w+)\(")
PTX_SHARED = re.compile(r"// shared memory: (\d+) bytes")


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


def cached(build, name):
    """A value of the build's CMake cache."""
    match = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    return match.group(1) if match else None


def ptx_of(build, source):
    command = [cached(build, "NVCC"), f"-ccbin={cached(build, 'CMAKE_CXX_COMPILER')}", "-std=c++20",
               "--expt-relaxed-constexpr", "-O3", "-fmad=false", f"-I{ROOT}", "-arch=compute_90a", "-ptx", str(source), "-o", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def shared_memory(ptx):
    """{mangled kernel: bytes of dynamic shared memory}"""
    _, *parts = PTX_ENTRY.split(ptx)
    return {name: max(map(int, PTX_SHARED.findall(body)), default=0) for name, body in zip(parts[::2], parts[1::2])}


def check_instructions(source, ptx, table, violations):
    for instruction in table["instructions"].get(source.stem, []):
        if instruction not in ptx:
            violations.append(f"{source.name}: no {instruction} in its PTX")


def check_kernels(entries, names, budgets, violations):
    """Whatever differs between compute capabilities."""
    for mangled, architecture, use in entries:
        where = f"{names[mangled]}, sm_{architecture}"
        budget = budgets.get(names[mangled])
        if use["stack"] or use["stores"] or use["loads"]:
            violations.append(f"{where}: {use['stack']} bytes of stack, {use['stores']} spilled, {use['loads']} loaded")
        if budget and use["registers"] > budget["registers"]:
            violations.append(f"{where}: {use['registers']} registers, at most {budget['registers']}")


def check_table(found, budgets, violations):
    for name, use in found.items():
        if name not in budgets:
            violations.append(f"{name}: not in {TABLE.name}")
        elif use["shared_bytes"] > budgets[name]["shared_bytes"]:
            violations.append(f"{name}: {use['shared_bytes']} bytes of shared memory, at most {budgets[name]['shared_bytes']}")
    for name in sorted(set(budgets) - set(found)):
        violations.append(f"{name}: in {TABLE.name}, but there is no such kernel")


def text_of(table):
    """The table as JSON, with one line for each kernel or source."""
    parts = [f'  "{part}": {{\n' + ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "\n  }"
             for part, rows in table.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


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
    entries, shared, violations = [], {}, []
    for log in logs:
        kernels, forbidden = read_log(log)
        entries += kernels
        violations += [f"{log.stem}.cu: {line}" for line in forbidden]
    for source in sorted((ROOT / "kernels/cuda").glob("*.cu")):
        ptx = ptx_of(arguments.build, source)
        shared |= shared_memory(ptx)
        check_instructions(source, ptx, table, violations)
    names = demangle({mangled for mangled, _, _ in entries})
    found = {names[mangled]: {"registers": max(use["registers"] for name, _, use in entries if name == mangled),
                              "shared_bytes": shared.get(mangled, 0)}
             for mangled in sorted(names, key=names.get)}
    if arguments.write:
        table["kernels"] = {name: use | {"registers": math.ceil(use["registers"] / 8) * 8} for name, use in found.items()}
        TABLE.write_text(text_of(table))
    check_kernels(entries, names, table["kernels"], violations)
    check_table(found, table["kernels"], violations)
    print(f"{'kernel':40} {'registers':>9} {'budget':>6} {'shared memory':>13} {'budget':>6}")
    for name, use in found.items():
        budget = table["kernels"].get(name, {"registers": 0, "shared_bytes": 0})
        print(f"{name:40} {use['registers']:9} {budget['registers']:6} {use['shared_bytes']:13} {budget['shared_bytes']:6}")
    for violation in violations:
        print(violation)
    architectures = {architecture for _, architecture, _ in entries}
    print(f"gates: {len(names)} kernels, {len(architectures)} compute capabilities, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
