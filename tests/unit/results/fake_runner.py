# SPDX-License-Identifier: Apache-2.0
"""Stands in for ``bertbench run``, and for torchrun: writes a record and says so, at once.

FAKE_BEHAVIOUR is JSON, seed (or ``x<processes>``) -> status, ``kill``, ``refuse``, ``hang`` or
``unlike``; FAKE_LOG a file that gets a line per start; FAKE_RATES JSON, processes -> rate.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.unit.results.constructed import device, make_run


def flag(words: list[str], name: str, default: str) -> str:
    places = [i for i, word in enumerate(words) if word == f"--{name}"]
    return words[places[-1] + 1] if places else default


def elastic(words: list[str]) -> None:
    count = words[0].removeprefix("--nproc-per-node=")
    assert words[1:3] == ["--standalone", "--no-python"], words
    os.execve(words[3], words[3:], os.environ | {"FAKE_WORLD": count})


def run(words: list[str]) -> int:
    world = int(os.environ.get("FAKE_WORLD", "1"))
    seed = int(flag(words, "seed", "42"))
    behaviours = json.loads(os.environ.get("FAKE_BEHAVIOUR", "{}"))
    behaviour = behaviours.get(str(seed), behaviours.get(f"x{world}", "ok"))
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write(json.dumps({"words": words, "seed": seed, "world": world}) + "\n")
    print("a vendor's greeting", flush=True)
    if behaviour == "refuse":
        print(json.dumps({"error": "no such thing", "kind": "Unsupported"}))
        return 2
    if behaviour == "kill":
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "hang":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
        Path(os.environ["FAKE_LOG"] + ".hanging").touch()
        time.sleep(60)
    rates = json.loads(os.environ.get("FAKE_RATES", "{}"))
    rate = rates.get(str(world), 100.0 + seed) * (2 if "--micro_batch" in words else 1)
    status = behaviour if behaviour in ("failed", "oom", "below_quality") else "ok"
    quality = {"metric": "mlm_accuracy", "value": 0.5, "target": 0.4,
               "reached": status == "ok", "samples": 80}  # fmt: skip
    one = [device(0, backend="cpu_ref")] * world
    folder = make_run(
        Path(flag(words, "output_dir", "results")),
        {} if status in ("failed", "oom") else {"sequences_per_second": rate},
        run_id=f"20260102T000000Z_abcdefa_{os.getpid() % 0xFFFFFF:06x}",
        seed=seed,
        status=status,
        world_size=world,
        devices=one if "cpu_ref" in words else None,
        quality=None if "--synthetic" in words else quality,
        global_batch=int(flag(words, "global_batch", "16")),
        precision="fp32" if behaviour == "unlike" else "bf16",
        recipe_hash="e" * 16 if "--learning_rate" in words else "0123456789abcdef",
    )
    told = {"record": str(folder), "status": status, "reason": f"it is {status}", "metrics": {}}
    print(json.dumps(told))
    return 0 if status == "ok" else 1


if __name__ == "__main__":
    if sys.argv[1].startswith("--nproc"):
        elastic(sys.argv[1:])
    sys.exit(run(sys.argv[1:]))
