#!/usr/bin/env python3
"""Plants one bug at a time in the CUDA kernels and fails if the tests under the emulator do not find it.

Usage: mutations.py BUILD_DIR [--seeds N] [--jobs N] [--only TEXT] [--list]

BUILD_DIR is a configured build with the target kernels_cuda_test, which is brought up to date first. Each mutation
replaces text that must be there exactly once, compiles the sources that it concerns and links them with the rest of
the test program. The tests of the mutation then run once for each seed, until one fails. If some seeds miss the bug,
the sources are compiled once more, so that every access is checked, and the tests run on one seed. Printed is on how
many seeds the bug was found, what the checker said, and what found it; a bug that nothing finds makes this exit 1.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

from mutation_table import KERNELS, MUTATIONS, ROOT, Mutation

TARGET = "kernels_cuda_test"
# A mutation may make a kernel wait for ever, or hand out endless work.
TIMEOUT_SECONDS = 60

# What a kernel is compiled with so that each of its loads and stores is checked.
CHECKED = "-fsanitize-coverage=func,trace-loads,trace-stores"


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


def write(path, text):
    """Writes a file unless it is so already: compilers' caches look at its time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


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
        return re.sub(r"0x[0-9a-f]+|\d+", "N", violation.group(1))[:60]
    failed = re.search(r"\[  FAILED  \] (?:\w+/)?(\w+\.\w+)", result.stdout)
    return failed.group(1) if failed else f"exit code {result.returncode}"


@dataclasses.dataclass
class Finding:
    mutation: Mutation
    seeds: int = 0  # on which it was found
    by: str = ""
    checked: str = ""  # what the checker of accesses said, if it was asked
    trouble: str = ""  # no mutant came of it

    @property
    def found(self):
        return not self.trouble and (self.seeds > 0 or self.checked != "")


def make_mutant(build, mutation, directory, flags):
    """The test program with a mutation."""
    text = (KERNELS / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise NoMutant(f"its text is in {mutation.file} {count} times")
    for other in directory.glob("kernels/cuda/*"):
        if other.name != mutation.file:
            other.unlink()
    write(directory / "kernels/cuda" / mutation.file, text.replace(mutation.old, mutation.new))
    program = directory / TARGET
    sources = build.sources_using(mutation.file)
    build.link_program([build.compile_source(source, directory, flags) for source in sources], program)
    return program


def examine(build, number, mutation, num_seeds):
    finding = Finding(mutation)
    directory = build.directory / "mutations" / f"{number:03}"
    try:
        program = make_mutant(build, mutation, directory, [])
        reasons = [run_tests(program, mutation.tests, seed) for seed in range(1, num_seeds + 1)]
        reasons = sorted(reason for reason in reasons if reason)
        finding.seeds = len(reasons)
        finding.by = max(reasons, key=reasons.count, default="")
        if finding.seeds < num_seeds:
            program = make_mutant(build, mutation, directory, [CHECKED])
            finding.checked = run_tests(program, mutation.tests, 1) or ""
        program.unlink()
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
        reason = run_tests(build.program, tests, 1)
        if reason:
            sys.exit(f"mutations.py: without any mutation, {tests} fails: {reason}")


def print_finding(finding, num_seeds):
    seeds = "-" if finding.trouble else f"{finding.seeds}/{num_seeds}"
    what = finding.trouble or finding.by
    if finding.checked:
        what += f"{'; ' if what else ''}checked: {finding.checked}"
    mark = "" if finding.found else "  <- NO MUTANT" if finding.trouble else "  <- NOT FOUND"
    print(f"{finding.mutation.file:20} {finding.mutation.name:54} {seeds:>6}  {what}{mark}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutations whose file or name has this text")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [(number, mutation) for number, mutation in enumerate(MUTATIONS)
              if arguments.only in f"{mutation.file}: {mutation.name}"]
    if arguments.list:
        for _, mutation in chosen:
            print(f"{mutation.file}: {mutation.name}")
        return 0
    start = time.monotonic()
    build = Build(arguments.build)
    check_tests(build, [mutation for _, mutation in chosen])
    findings = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for finding in pool.map(lambda each: examine(build, *each, arguments.seeds), chosen):
            print_finding(finding, arguments.seeds)
            findings.append(finding)
    num_found = sum(finding.found for finding in findings)
    print(f"{num_found} of {len(findings)} found, {time.monotonic() - start:.0f} s")
    return 0 if num_found == len(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
