"""A help text comes at once: a command imports what takes a while after it has read its arguments.

Not by the clock, which is the machine's: by what has been imported.
"""

from tests.commands import ROOT, run

HELP = """
import runpy, sys
at_start, option, scripts = set(sys.modules), sys.argv[1], sys.argv[2:]
for script in scripts:
    sys.argv = [script, option]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, script
imported = {name.partition(".")[0] for name in set(sys.modules) - at_start}
print(*sorted(imported - sys.stdlib_module_names), file=sys.stderr)
"""

OWN = ["eval", "surgery", "trainers"]  # the packages of the project


def test_help_needs_the_standard_library_only(tmp_path):
    scripts = [str(x) for x in sorted((ROOT / "launch").glob("*.py"))]
    done = run("-c", HELP, "--help", *scripts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(scripts) == 7
    assert done.stderr.split() == OWN


def test_so_does_the_help_of_every_key(tmp_path):
    names = ("train", "diagnose", "score", "serve", "ablate")
    scripts = [str(ROOT / "launch" / f"{name}.py") for name in names]
    done = run("-c", HELP, "--keys", *scripts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\ntrain.steps = 150 (a whole number, at least 1): ") == 5
    assert done.stderr.split() == OWN
