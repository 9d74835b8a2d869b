"""Adds up the JUnit files of a test run. Usage: summary.py DIRECTORY FAILED_STAGES.

Prints the failed tests, a line per file and last `N passed, N failed`. Stages that have no test file of their
own (lint, builds, fuzzers) count as one failure each when they fail. Exits 1 if anything failed or nothing ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as xml


def outcome(case):
    """'failed', 'skipped' or 'passed', from the child elements that CTest and pytest write."""
    children = {child.tag for child in case}
    if children & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in children or case.get("status") == "notrun" else "passed"


def main():
    directory, failed_stages = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for path in sorted(directory.glob("*.xml")):
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        for case in xml.parse(path).getroot().iter("testcase"):
            counts[outcome(case)] += 1
            if outcome(case) == "failed":
                print(f"FAILED {path.stem}: {case.get('classname')}.{case.get('name')}")
        print(f"{path.stem}: {counts}")
        for key, value in counts.items():
            total[key] += value
    # A failed test also fails its stage; a stage that failed without one counts by itself.
    failed = total["failed"] or failed_stages
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
