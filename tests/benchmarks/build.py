"""The data stage at the paper's size: python tests/benchmarks/build.py [problems] [characters]

That many problems from files of the corpora's shapes, all asked of a model behind a local server that answers with so
many characters of thinking: seconds and peak memory of this process, from reading the corpora to the written ST and
ST-NT. Asked for by the issue: 31,586 problems in under 1 GB.
"""
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import actors
from server import serve

from smoltraces.problems.selection import build_problems
from smoltraces.settings import load_settings
from smoltraces.traces.variants import build_variants


def peak() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(n: int = 31586, characters: int = 20000):
    with tempfile.TemporaryDirectory() as folder:
        files = actors.write(Path(folder), -(-n // 60))
        corpora = [f"{c}@{files[c]}" for c in ("numina-math-cot", "omni-math", "agieval", "olympic-arena")]
        with serve(answer="actors:act", answers=files["answers"], turns=characters // 105) as server:
            cfg = load_settings("smoke", Path(__file__).parents[2], out=folder, source="corpora", corpora=corpora,
                                decontaminate=f"math500@{files['math500']}", n_problems=n, n_train=n // 2,
                                teacher_rlm="r1", teacher_rlm_url=server.url, variants="ST, ST-NT", in_flight=256,
                                teacher_max_tokens=8000)
            start = time.time()
            train = int((build_problems(cfg).split == "train").sum())
            print(f"{train} problems read, deduplicated and decontaminated: {time.time() - start:.0f} s, "
                  f"peak {peak():.0f} MB", flush=True)
            start = time.time()
            build_variants(cfg)
            seconds = time.time() - start
            size = os.path.getsize(cfg.path().parent / cfg.store) / 1e9
        print(f"{train} answers asked, stored ({size:.2f} GB), verified and written: {seconds:.0f} s, "
              f"{train / seconds:.0f}/s, peak {peak():.0f} MB")


if __name__ == "__main__": main(*map(int, sys.argv[1:]))
