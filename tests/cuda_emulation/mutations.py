#!/usr/bin/env python3
"""Plants one bug at a time in the CUDA kernels and fails if the tests under the emulator do not find it.

Usage: mutations.py BUILD_DIR [--seeds N] [--every-seed] [--jobs N] [--only TEXT] [--list]

BUILD_DIR is a configured build with the target kernels_cuda_test, which is brought up to date first. Each mutation
replaces text that must be there exactly once; the sources that it concerns are compiled and linked with the rest of
the test program. The tests that the mutation names then run seed by seed until they fail. For mutations that the table
marks as such, the kernels are compiled so that each load and store is checked, because on no schedule do their results
change. Before that, the same tests must pass on the first seed with no mutation, in both kinds of program.

Printed is a line for each mutation: the first seed that finds it - with --every-seed, how many do - and what the
failure was. Exits 1 if a mutation is found on no seed, or cannot be made.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time

from mutation_table import KERNELS, MUTATIONS, ROOT, Mutation

TARGET = "kernels_cuda_test"
# A mutation may make a kernel wait for ever, or hand out endless work. Tests of one seed take less than two seconds.
TIMEOUT_SECONDS = 60

# What a kernel is compiled with so that each of its loads and stores is checked.
CHECKED = ["-fsanitize-coverage=func,trace-loads,trace-stores"]


class Build:
    """Commands of a build directory."""

    def __init__(self, directory):
        self.directory = directory.resolve()
        subprocess.run(["ninja", "-C", str(self.directory), TARGET], check=True, stdout=subprocess.DEVNULL)
        link = self._ninja("-t", "commands", TARGET).splitlines()[-1]
        self.link = shlex.split(link.split("&&")[1] if "&&" in link else link)
        self.program = self.directory / self.link[self.link.index("-o") + 1]
        self.ccache = shutil.which("ccache")
        self.entries = {}  # of compilations of kernels, by the name of the source
        self.includes = {}  # what each of them includes
        for entry in json.loads(self._ninja("-t", "compdb")):
            source = pathlib.Path(entry["file"])
            if source.suffix == ".cu" and source.parent == KERNELS and "cuda_emulated.dir" in entry["output"]:
                self.entries[source.name] = entry
                self.includes[source.name] = self._ninja("-t", "deps", entry["output"]).split()

    def _ninja(self, *arguments):
        return subprocess.run(["ninja", "-C", str(self.directory), "--quiet", *arguments], check=True,
                              capture_output=True, text=True).stdout

    def sources_using(self, file):
        """The .cu files that are, or include, a file of kernels/cuda."""
        return sorted(name for name, included in self.includes.items()
                      if name == file or str(KERNELS / file) in included)

    def compile_source(self, name, mutant, flags):
        """The object file of a source, with what `mutant` holds in place of its headers and itself."""
        own = mutant / "kernels/cuda" / name
        output = mutant / f"{name}.o"
        words, skip = [], False
        for word in shlex.split(self.entries[name]["command"]):
            if not skip and word not in ("-MT", "-MF", "-o", "-c", "-MD") and not word.endswith("ccache"):
                words.append(word)
            skip = word in ("-MT", "-MF", "-o", "-c")
        # A mutant may leave something unused.
        words[1:1] = ["-w", *flags, f"-I{mutant}"]
        words += ["-o", str(output), "-c", str(own if own.exists() else KERNELS / name)]
        run_tool(words if self.ccache is None else [self.ccache, *words], self.directory)
        return output

    def link_program(self, objects, output):
        """The test program, with `objects` in place of members of libraries: what comes first counts."""
        words = list(self.link)
        at = words.index("-o")
        words[at + 1] = str(output)
        words[at:at] = [str(path) for path in objects]
        run_tool(words, self.directory)


class NoMutant(Exception):
    """A mutation that cannot be made."""


def run_tool(words, directory):
    result = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    if result.returncode != 0:
        errors = re.findall(r"error: .*", result.stderr)
        raise NoMutant(errors[0] if errors else result.stderr[-300:])


def tests_of_seed(tests, seed):
    return ":".join(re.sub(r"/I$", f"/{seed - 1}", re.sub(r"/S$", f"/Seed{seed}", each)) for each in tests.split(":"))


def run_tests(program, tests, seed):
    """None if all tests pass, otherwise what failed."""
    command = [str(program), "--gtest_fail_fast", "--gtest_brief=1", f"--gtest_filter={tests_of_seed(tests, seed)}"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace",
                                timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return "takes too long"
    if result.returncode == 0:
        return None
    violation = re.search(r"CUDA emulation: (.*?)(?:; kernel .*)?$", result.stderr, re.MULTILINE)
    if violation:
        return re.sub(r"0x[0-9a-f]+|\d+", "N", violation.group(1))[:80]
    failed = re.search(r"\[  FAILED  \] (?:\w+/)?(\w+\.\w+)", result.stdout)
    return failed.group(1) if failed else f"exit code {result.returncode}"


@dataclasses.dataclass
class Finding:
    mutation: Mutation
    seeds: list[int] = dataclasses.field(default_factory=list)  # on which it was found
    reasons: list[str] = dataclasses.field(default_factory=list)  # on each of them
    trouble: str = ""  # no mutant came of it

    def describe(self, num_seeds, every_seed):
        """The line of the table."""
        if self.trouble:
            seeds, what = "-", f"{self.trouble}  <- NO MUTANT"
        elif not self.seeds:
            seeds, what = "-", "<- NOT FOUND"
        else:
            seeds = f"{len(self.seeds)}/{num_seeds}" if every_seed else str(self.seeds[0])
            what = max(self.reasons, key=self.reasons.count) + ("  (checked)" if self.mutation.checked else "")
        return f"{self.mutation.file:20} {self.mutation.name:54} {seeds:>5}  {what}"


@contextlib.contextmanager
def program_with(build, file, text, checked, name):
    """The test program with `text` in place of a file of kernels/cuda, in a directory of that name for as long."""
    # The same name each time, for the compiler's cache.
    directory = build.directory / "mutations" / re.sub(r"\W+", "_", f"{file} {name}")
    shutil.rmtree(directory, ignore_errors=True)
    mutant = directory / "kernels/cuda" / file
    mutant.parent.mkdir(parents=True)
    mutant.write_text(text)
    flags = CHECKED if checked else []
    program = directory / TARGET
    try:
        objects = [build.compile_source(source, directory, flags) for source in build.sources_using(file)]
        build.link_program(objects, program)
        yield program
    finally:
        shutil.rmtree(directory)


def mutated(mutation):
    """The text of the file with the bug."""
    text = (KERNELS / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise NoMutant(f"its text is in {mutation.file} {count} times")
    return text.replace(mutation.old, mutation.new)


def examine(build, mutation, num_seeds, every_seed):
    finding = Finding(mutation)
    try:
        with program_with(build, mutation.file, mutated(mutation), mutation.checked, mutation.name) as program:
            for seed in range(1, num_seeds + 1):
                reason = run_tests(program, mutation.tests, seed)
                if reason:
                    finding.seeds.append(seed)
                    finding.reasons.append(reason)
                    if not every_seed:
                        break
    except NoMutant as trouble:
        finding.trouble = str(trouble)
    return finding


def check_tests(build, chosen):
    """Exits unless every test that a mutation names is there, and passes without it."""
    for tests in sorted({mutation.tests for mutation in chosen}):
        for each in tests_of_seed(tests, 1).split(":"):
            listed = subprocess.run([str(build.program), "--gtest_list_tests", f"--gtest_filter={each}"], check=True,
                                    capture_output=True, text=True, cwd=ROOT).stdout
            if not re.search(r"^  \S", listed, re.MULTILINE):
                sys.exit(f"mutations.py: there is no test {each}")
        check_passes(build.program, tests, "without any mutation")
    for file, tests in sorted({(mutation.file, mutation.tests) for mutation in chosen if mutation.checked}):
        with program_with(build, file, (KERNELS / file).read_text(), True, "unchanged") as program:
            check_passes(program, tests, f"without any mutation, but each access in {file} checked")


def check_passes(program, tests, circumstance):
    reason = run_tests(program, tests, 1)
    if reason:
        sys.exit(f"mutations.py: {circumstance}, {tests} fails: {reason}")


def summary(findings, num_seeds, every_seed, seconds):
    """How many were found, and on which seeds."""
    found = [finding for finding in findings if finding.seeds]
    text = f"{len(found)} of {len(findings)} planted bugs found within {num_seeds} seeds"
    if found and every_seed:
        text += f", on {statistics.median(len(finding.seeds) for finding in found):.0f} of them in median"
    elif found:
        first = sum(finding.seeds[0] == 1 for finding in found)
        text += f", {first} on the first, the last on seed {max(finding.seeds[0] for finding in found)}"
    checked = sum(finding.mutation.checked for finding in found)
    return f"{text}; {checked} by checking each access; {seconds:.0f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--every-seed", action="store_true", help="count the seeds that find a mutation")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutations whose file or name has this text")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if arguments.only in f"{mutation.file}: {mutation.name}"]
    if arguments.list:
        for mutation in chosen:
            print(f"{mutation.file}: {mutation.name}")
        return 0
    start = time.monotonic()
    build = Build(arguments.build)
    check_tests(build, chosen)
    findings = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for finding in pool.map(lambda each: examine(build, each, arguments.seeds, arguments.every_seed), chosen):
            print(finding.describe(arguments.seeds, arguments.every_seed), flush=True)
            findings.append(finding)
    print(summary(findings, arguments.seeds, arguments.every_seed, time.monotonic() - start))
    return 0 if all(finding.seeds for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
