"""Seconds of whole runs: eager, compiled at once, and under "auto", with an empty folder of libraries and a full one.

    python tests/benchmarks/whole_runs.py [--only "vae digits" ...] [--threads 2]

Each run is a fresh process, imports and evaluation included. "cold" empties ppgen's folder of libraries and inductor's
cache before the run; "warm" finds what the run before has left there. The last column is "auto" over the better of
eager and compiled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

EIGHT_SCHOOLS = """
import pyro, pyro.distributions as dist, torch, ppgen
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
scale = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

def model(y, scale):
    mean, spread = pyro.sample("mean", dist.Normal(0.0, 5.0)), pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mean + spread * effect, scale), obs=y)

guide = pyro.infer.autoguide.AutoNormal(model)
ppgen.fit(model, guide, (y, scale), steps=STEPS, compile=COMPILE, progress=False)
"""
MIXTURE = """
import pyro, pyro.distributions as dist, torch, ppgen
x = torch.cat([torch.randn(300) - 2, torch.randn(300) + 2])

def model(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[..., c], 1.0), obs=x)

guide = pyro.infer.autoguide.AutoNormal(pyro.poutine.block(model, hide=["c"]))
loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
ppgen.fit(model, guide, x, loss=loss, steps=STEPS, compile=COMPILE, progress=False)
"""
RUNS = {
    "vae digits": None,
    "nsf moons": 400,
    "maf moons": 400,
    "edm digits": 200,
    "wgan digits": 300,
    "dann": None,
    "eight schools": 500,
    "mixture": 500,
    "progan digits": None,
    "vae digits, 2000 steps": 2000,
    "glow digits": 100,
    "continuous moons": 100,
}
"""Steps of each run; None for those of its defaults."""
PROGRAMS = {"eight schools": EIGHT_SCHOOLS, "mixture": MIXTURE}
WAYS = {"eager": "False", "compiled, cold": "True", "auto, cold": '"auto"', "auto, warm": '"auto"'}


def command(name: str, compile: str) -> list[str]:
    """The command line of a run."""
    steps = RUNS[name]
    if name in PROGRAMS:
        return [sys.executable, "-c", PROGRAMS[name].replace("STEPS", str(steps)).replace("COMPILE", compile)]
    words = name.partition(",")[0].split()
    length = [] if steps is None else ["--fit.steps", str(steps)]
    return [sys.executable, "-m", "ppgen", "train", *words, *length, "--fit.compile", compile.strip('"')]


def seconds(name: str, compile: str, caches: str, threads: int) -> float:
    """The time of a run."""
    folders = {"PPGEN_CACHE_DIR": f"{caches}/ppgen", "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor"}
    environment = os.environ | folders | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(command(name, compile), cwd=folder, env=environment, capture_output=True, check=False)
        took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.decode()[-500:]}")
    return took


def main() -> None:
    """Measures the runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print("| run |" + "".join(f" {way} |" for way in WAYS) + " auto / better, cold | warm |", flush=True)
    print("|---|" + "---|" * (len(WAYS) + 2))
    totals = dict.fromkeys(WAYS, 0.0)
    for name in options.only:
        found = {}
        with tempfile.TemporaryDirectory() as cold, tempfile.TemporaryDirectory() as kept:
            folders = {"eager": kept, "compiled, cold": cold, "auto, cold": kept, "auto, warm": kept}
            for way, compile in WAYS.items():
                found[way] = seconds(name, compile, folders[way], options.threads)
                totals[way] += found[way]
        better = min(found["eager"], found["compiled, cold"])
        cells = [f"{value:.1f}" for value in found.values()]
        cells += [f"{found[way] / better:.2f}" for way in ("auto, cold", "auto, warm")]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("| sum | " + " | ".join(f"{value:.1f}" for value in totals.values()) + " | | |")


if __name__ == "__main__":
    main()
