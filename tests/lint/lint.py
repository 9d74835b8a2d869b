#!/usr/bin/env python3
"""Checks the house rules of the source tree: who may include whom, which word belongs where, sizes.

Usage: lint.py [ROOT]. Prints one line per violation, `file:line: rule: what`, and exits 1 if there is any.
The rooms and what each may include are read from the `room(PATH DEPS ...)` table in CMakeLists.txt.
"""

import json
import pathlib
import re
import subprocess
import sys

SOURCE_ROOTS = ("engine", "kernels", "server", "tokenizer")
TEST_ROOT = "tests"
MAX_FILE_LINES = {".h": 500, ".cc": 500, ".cu": 600, ".cuh": 600}
MAX_FUNCTION_LINES = {".h": 50, ".cc": 50, ".cu": 120, ".cuh": 120}
MAX_PARAMETERS = 6
README_HEADINGS = ("Purpose", "May include", "Walk", "Invariants", "Decisions")

# A word, as it stands in code outside comments and strings, and the rooms that may speak of it.
WORD_ROOMS = (
    (re.compile(r"cuda", re.IGNORECASE), ("kernels/cuda", "kernels/backends")),
    (re.compile(r"http(?!s?:)", re.IGNORECASE), ("server",)),
    (re.compile(r"\bstd::j?thread\b"), ("kernels/cpu", "engine/execution", "engine", "server")),
    (re.compile(r"\b(secure_)?getenv\b"), ("server",)),
    (re.compile(r"\bthrow\b"), ()),
    (re.compile(r"\busing namespace\b"), ()),
)

# A library, by the beginning of its include path, and the rooms that may use it.
LIBRARY_ROOMS = (
    ("nlohmann/", ("tokenizer", "tokenizer/jinja", "engine/model", "server", "server/http", "server/admin")),
    ("boost/", ("server/http",)),
    ("prometheus/", ("server/admin",)),
    ("spdlog/", ("server",)),
    ("CLI/", ("server",)),
    ("pcre2.h", ("tokenizer",)),
    ("immintrin.h", ("kernels/cpu",)),
)

# Exceptions to a size budget, each with its reason.
EXCEPTIONS = {}


class Tree:
    """The checked files of a source tree and the violations found so far."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.violations = []
        self.rooms = self._read_rooms()
        self.sources = self._list(SOURCE_ROOTS)
        self.tests = self._list((TEST_ROOT,))

    def _read_rooms(self):
        """{room path: set of room paths that it may include}, closed under transitivity."""
        text = (self.root / "CMakeLists.txt").read_text()
        direct = {}
        for match in re.finditer(r"^room\((\S+)([^)]*)\)", text, re.MULTILINE):
            words = match.group(2).split()
            direct[match.group(1)] = re.split(r"\b(?:TEST_)?DEPS\b", match.group(2) + " DEPS ")[1].split()
        by_target = {path.replace("/", "_"): path for path in direct}
        allowed = {}
        for room in direct:
            seen, todo = set(), [room]
            while todo:
                for target in direct[todo.pop()]:
                    if target in by_target and by_target[target] not in seen:
                        seen.add(by_target[target])
                        todo.append(by_target[target])
            allowed[room] = seen
        return allowed

    def _list(self, tops):
        suffixes = set(MAX_FILE_LINES)
        files = []
        for top in tops:
            files += [path for path in (self.root / top).rglob("*") if path.suffix in suffixes]
        return sorted(files)

    def relative(self, path):
        return path.relative_to(self.root)

    def room_of(self, path):
        return self.relative(path).parent.as_posix()

    def report(self, path, line, rule, what):
        self.violations.append(f"{self.relative(path)}:{line}: {rule}: {what}")


def code_lines(text):
    """The lines of `text` with comments and the contents of strings blanked out."""
    pattern = re.compile(
        r'R"([^(\s]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/', re.DOTALL)

    def blank(match):
        return re.sub(r"[^\n]", " ", match.group(0))

    return pattern.sub(blank, text).splitlines()


def check_includes(tree):
    """Quoted includes name a room below; libraries stay in their rooms; rooms form no circle."""
    edges = {}
    for path in tree.sources:
        room = tree.room_of(path)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#include\s+(?:"([^"]+)"|<([^>]+)>)', line)
            if not match:
                continue
            if match.group(2):
                for prefix, rooms in LIBRARY_ROOMS:
                    if match.group(2).startswith(prefix) and room not in rooms:
                        tree.report(path, number, "include", f"<{match.group(2)}> belongs to {', '.join(rooms)}")
                continue
            target = pathlib.PurePosixPath(match.group(1)).parent.as_posix()
            if target == room:
                continue
            edges.setdefault(room, {}).setdefault(target, (path, number))
            if target not in tree.rooms.get(room, set()):
                tree.report(path, number, "include", f"room {room} may not include {match.group(1)}")
    for circle in find_circles({room: set(targets) for room, targets in edges.items()}):
        path, number = edges[circle[0]][circle[1]]
        tree.report(path, number, "circle", " -> ".join(circle))


def find_circles(edges):
    """Circles among the rooms, each as a path that ends where it begins."""
    circles, done = [], set()

    def visit(room, trail):
        if room in trail:
            circles.append(trail[trail.index(room):] + [room])
            return
        if room in done:
            return
        for target in sorted(edges.get(room, ())):
            visit(target, trail + [room])
        done.add(room)

    for room in sorted(edges):
        visit(room, [])
    return circles


def check_words(tree):
    for path in tree.sources:
        room = tree.room_of(path)
        for number, line in enumerate(code_lines(path.read_text()), 1):
            for pattern, rooms in WORD_ROOMS:
                allowed = any(room == own or room.startswith(own + "/") for own in rooms if own != "engine")
                allowed = allowed or (room == "engine" and "engine" in rooms)
                match = pattern.search(line)
                if match and not allowed:
                    tree.report(path, number, "word", f"'{match.group(0)}' is not spoken in {room}")


def check_sizes(tree):
    for path in tree.sources + tree.tests:
        lines = len(path.read_text().splitlines())
        limit = MAX_FILE_LINES[path.suffix]
        if lines > limit and tree.relative(path).as_posix() not in EXCEPTIONS:
            tree.report(path, 1, "size", f"{lines} lines, at most {limit}")
    if not tree.sources:
        return
    command = ["ctags", "--output-format=json", "--fields=+neS", "--languages=C++", "--langmap=C++:+.cu.cuh",
               "--kinds-C++=f", "-f", "-", *map(str, tree.sources)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for tag in map(json.loads, output.splitlines()):
        path = pathlib.Path(tag["path"])
        name = f"{tree.relative(path)}:{tag['name']}"
        lines = tag.get("end", tag["line"]) - tag["line"] + 1
        limit = MAX_FUNCTION_LINES[path.suffix]
        if lines > limit and name not in EXCEPTIONS:
            tree.report(path, tag["line"], "size", f"{tag['name']} has {lines} lines, at most {limit}")
        parameters = count_parameters(tag.get("signature", "()"))
        if parameters > MAX_PARAMETERS and name not in EXCEPTIONS:
            tree.report(path, tag["line"], "size",
                        f"{tag['name']} has {parameters} parameters, at most {MAX_PARAMETERS}")


def count_parameters(signature):
    inner = signature[signature.find("(") + 1:signature.rfind(")")].strip()
    if not inner:
        return 0
    depth, count = 0, 1
    for character in inner:
        depth += character in "(<[{"
        depth -= character in ")>]}"
        count += character == "," and depth == 0
    return count


def check_inheritance(tree):
    """One deep: what inherits is final."""
    pattern = re.compile(r"\b(?:class|struct)\s+(\w+)\s*(final\s*)?:\s*(?:public|private)\b")
    for path in tree.sources:
        for number, line in enumerate(code_lines(path.read_text()), 1):
            match = pattern.search(line)
            if match and not match.group(2):
                tree.report(path, number, "inheritance", f"{match.group(1)} inherits and is not final")


def check_readmes(tree):
    for room in tree.rooms:
        readme = tree.root / room / "README.md"
        if not readme.exists():
            tree.report(tree.root / room, 0, "readme", "the room has no README.md")
            continue
        headings = re.findall(r"^##? (.+)$", readme.read_text(), re.MULTILINE)
        for heading in README_HEADINGS:
            if not any(found.startswith(heading) for found in headings):
                tree.report(readme, 1, "readme", f"no heading '{heading}'")


def check_format(tree):
    files = [str(path) for path in tree.sources + tree.tests]
    if not files:
        return
    result = subprocess.run(["clang-format-19", "--dry-run", "-Werror", *files], capture_output=True, text=True,
                            cwd=tree.root)
    for match in re.finditer(r"^(.*?):(\d+):\d+: error: (.*)$", result.stderr, re.MULTILINE):
        tree.report(pathlib.Path(match.group(1)), match.group(2), "format", match.group(3))


CHECKS = (check_includes, check_words, check_sizes, check_inheritance, check_readmes, check_format)


def main():
    tree = Tree(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2])
    for check in CHECKS:
        check(tree)
    for violation in tree.violations:
        print(violation)
    print(f"lint: {len(tree.sources)} sources, {len(tree.tests)} tests, {len(tree.rooms)} rooms, "
          f"{len(tree.violations)} violations")
    return 1 if tree.violations else 0


if __name__ == "__main__":
    sys.exit(main())
