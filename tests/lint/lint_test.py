"""Plants one violation of each rule into a small tree and expects lint to name it."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lint  # noqa: E402

ROOMS = """
room(kernels DEPS absl::status)
room(engine/model DEPS kernels)
room(server DEPS engine_model)
"""
README = "".join(f"## {heading}\n" for heading in lint.README_HEADINGS)
HEADER = "#pragma once\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(ROOMS)
    for room in ("kernels", "engine/model", "server"):
        (tmp_path / room).mkdir(parents=True)
        (tmp_path / room / "README.md").write_text(README)
    (tmp_path / "kernels/tensor.h").write_text(HEADER)
    (tmp_path / "engine/model/model.h").write_text(HEADER + '\n#include "kernels/tensor.h"\n')
    return tmp_path


def rules(root, checks=lint.CHECKS):
    tree = lint.Tree(root)
    for check in checks:
        check(tree)
    return [violation.split(": ")[1] for violation in tree.violations]


def test_clean_tree_passes(root):
    assert rules(root) == []


def test_include_upwards_is_forbidden_and_closes_a_circle(root):
    (root / "kernels/tensor.h").write_text(HEADER + '\n#include "engine/model/model.h"\n')
    assert sorted(rules(root)) == ["circle", "include"]


def test_library_outside_its_room(root):
    (root / "kernels/tensor.h").write_text(HEADER + "\n#include <boost/asio.hpp>\n")
    assert rules(root) == ["include"]


@pytest.mark.parametrize("code", ["int cuda_device = 0;", "std::thread* worker;", "int http_port = 0;",
                                  "void F() { throw 1; }", 'char* v = getenv("HOME");'])
def test_word_outside_its_room(root, code):
    (root / "kernels/tensor.h").write_text(f"{HEADER}\n{code}\n")
    assert "word" in rules(root, [lint.check_words])


def test_words_in_comments_and_strings_are_free(root):
    (root / "kernels/tensor.h").write_text(HEADER + '\n// cuda, http\nconst char* name = "std::thread";\n')
    assert rules(root, [lint.check_words]) == []


def test_long_file(root):
    (root / "kernels/tensor.h").write_text(HEADER + "// x\n" * 500)
    assert rules(root) == ["size"]


def test_long_function(root):
    body = "  x += 1;\n" * 50
    (root / "kernels/tensor.h").write_text(f"{HEADER}\nvoid Long(int x) {{\n{body}}}\n")
    assert rules(root) == ["size"]


def test_many_parameters(root):
    (root / "kernels/tensor.h").write_text(
        f"{HEADER}\nvoid Many(int a, int b, int c, int d, int e, int f, int g) {{}}\n")
    assert rules(root) == ["size"]


def test_inheritance_of_what_is_not_final(root):
    (root / "kernels/tensor.h").write_text(HEADER + "\nstruct A {};\nstruct B : public A {};\n")
    assert rules(root) == ["inheritance"]


def test_missing_readme_and_heading(root):
    (root / "kernels/README.md").unlink()
    (root / "server/README.md").write_text(README.replace("Walk", "Stroll"))
    assert rules(root) == ["readme", "readme"]


def test_bad_format(root):
    (root / "kernels/tensor.h").write_text(HEADER + "\nint   x=1;\n")
    assert set(rules(root)) == {"format"}
