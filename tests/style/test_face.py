"""The room's face gives functions, although modules of the same names lie behind it, and is quick to import."""
import subprocess
import sys

FACE = """
import sys
from smoltraces.style import compare, measure, measure_corpus, probe, view
assert all(callable(f) for f in (compare, measure, measure_corpus, probe, view)), (compare, measure)
import smoltraces.style
import smoltraces.style.compare, smoltraces.style.measure
assert callable(smoltraces.style.measure) and callable(smoltraces.style.compare)
print(*sorted({"jinja2", "numba", "pandas", "pyarrow", "rich", "scipy", "sklearn"} & set(sys.modules)))
"""


def test_the_face_gives_functions_and_imports_nothing_slow():
    done = subprocess.run([sys.executable, "-c", FACE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
