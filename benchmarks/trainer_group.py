"""A run's updates by one process and by several: the same weights, whoever is killed, and what a step costs.

    OMP_NUM_THREADS=1 python benchmarks/trainer_group.py equality --steps 250
    OMP_NUM_THREADS=1 python benchmarks/trainer_group.py kills --trials 20

`equality` trains the quickstart's Poly-EPO arm in one process, applies its updates again from the saved rollouts on two
and three ranks, and compares the final weights; the same in float64, by a model that computes nothing in less.

`kills` trains a run on two ranks again and again; a process of it (the run itself, torchrun, a rank) is killed at a
random moment, what is left is counted, and the run goes on to the end: its weights must be those of the run that nobody
disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from polyepo.config import RunConfig, TrainerResources, load_config
from polyepo.policy.group import stop_groups
from polyepo.policy.trainer import load_trainer
from polyepo.policy.update import Batch, UpdateMetrics
from polyepo.policy.weights import open_tensors, weights_digest
from tasks.checkpoint import checkpoint, warm_start
from tasks.judge import judge
from tasks.runs.models import initial_model, warm_start_digest
from tasks.runs.policies import put_policy, training_batch
from tasks.runs.run import Run, checkpoint_due, create_or_resume, open_run
from tasks.sample import sample
from tasks.score import score
from tasks.update import update

PROJECT = Path(__file__).resolve().parents[1]
NAME = "run"


def quickstart(**settings: Any) -> RunConfig:
    """The quickstart's Poly-EPO arm, with settings by dotted name."""
    config = load_config(PROJECT / "configs" / "quickstart.yaml", {"steps": 250, **settings})
    return config.runs(NAME)[f"{NAME}-poly-epo"]


def train(root: str, config: RunConfig) -> Run:
    """Train a run, from wherever it stands, as the flow does, but without Prefect; a line is printed for each step."""
    warm_start.fn(root, config, warm_start_digest(config))
    run = create_or_resume(root, NAME, config)
    for step in range(1, config.steps + 1):
        if step > run.last_step():
            sample.fn(root, NAME, step, 0)
            judge.fn(root, NAME, step, 0)
            score.fn(root, NAME, step)
            update.fn(root, NAME, step)
        if checkpoint_due(run, step) and step > max(run.store.steps(NAME, "checkpoints"), default=0):
            checkpoint.fn(root, NAME, step)
        print(step, flush=True)
    run.store.wait()
    return run


def final_folder(run: Run) -> Path:
    """The files of a run's last checkpoint."""
    return run.store.local_files(run.key("checkpoints", run.config.steps))


def equality(steps: int) -> None:
    """Final weights of several processes against those of one, from the same batches."""
    with tempfile.TemporaryDirectory() as root:
        # Small micro-batches, so that all ranks have some.
        run = train(root, quickstart(steps=steps, **{"update.micro_batch_tokens": 256}))
        put_policy(run, None)
        batches = [training_batch(run, step) for step in range(1, steps + 1)]
        compare(run, batches, initial_model(run.store, run.config), "float32")
        # Llama's norms are computed in float32 in a model of float64 as well; those of GPT-NeoX are not.
        with tempfile.TemporaryDirectory() as model:
            neox(run, Path(model))
            compare(run, batches, model, "float64")


def neox(run: Run, folder: Path) -> None:
    """A random GPT-NeoX model of about the quickstart's size, that speaks the run's language."""
    base = initial_model(run.store, run.config)
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def compare(run: Run, batches: Sequence[Batch], model: str | Path, dtype: str) -> None:
    """Apply the batches to a model by one, two and three processes, and print how they differ."""
    config = run.config
    policy = config.policy.model_copy(update={"dtype": dtype})
    one: list[UpdateMetrics] = []
    with tempfile.TemporaryDirectory() as scratch:
        for processes in (1, 2, 3):
            trainer = load_trainer(model, policy, config.update, TrainerResources(processes=processes))
            started = time.perf_counter()
            measured = [trainer.update(batch, config.update, config.sampling, config.seed) for batch in batches]
            milliseconds = 1000 * (time.perf_counter() - started) / len(batches)
            folder = Path(scratch) / str(processes)
            trainer.export(folder)
            one = one or measured
            print(
                f"{dtype}, {len(batches)} updates by {processes}: {milliseconds:.0f} ms each; largest difference of a "
                f"weight from one process {difference(Path(scratch) / '1', folder):.1e}, of loss or gradient norm "
                f"{max(map(apart, one, measured)):.1e}"
            )
            stop_groups()


def difference(one: Path, other: Path) -> float:
    """The largest difference of any weight."""
    pairs = zip(open_tensors(one), open_tensors(other), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for (_, a), (_, b) in pairs)


def apart(one: UpdateMetrics, other: UpdateMetrics) -> float:
    """How far two updates' loss and gradient norm are apart, relative to the larger of the two."""
    scale = max(abs(one.loss), one.grad_norm)
    return max(abs(one.loss - other.loss), abs(one.grad_norm - other.grad_norm)) / scale


def kills(trials: int, steps: int, seed: int) -> None:
    """Kill something at a random moment, and see that nothing is left and that the run ends the same."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        undisturbed = launch(root / "undisturbed", steps)
        started = time.perf_counter()
        assert undisturbed.wait() == 0
        seconds = time.perf_counter() - started
        expected = weights_digest(final_folder(open_run(str(root / "undisturbed"), NAME)))
        print(f"undisturbed: {seconds:.0f} s, weights {expected[:12]}")
        for trial in range(trials):
            who = ("run", "torchrun", "rank")[trial % 3]
            outcome(root / str(trial), steps, who, rng, expected)


def outcome(root: Path, steps: int, who: str, rng: random.Random, expected: str) -> None:
    """One trial: kill at a random moment, from the group's start to the last step, then let the run end."""
    child = launch(root, steps)
    updates = root / "runs" / NAME / "updates"
    until = rng.randrange(steps)
    while (done := len([*updates.glob("*/manifest.json")])) < until or not group_of(root)["rank"]:
        assert child.poll() is None, f"it ended before it was killed: see {root / 'log'}"
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    found = group_of(root)
    victims = [child.pid] if who == "run" else found[who]
    if not victims or child.poll() is not None:
        print(f"{who}: it had ended already")
        child.wait()
    else:
        os.kill(rng.choice(victims), signal.SIGKILL)
        killed = time.perf_counter()
        if who == "run":
            child.wait()
            while any(group_of(root).values()):
                time.sleep(0.005)
            print(f"{who} killed after step {done}: all gone after {time.perf_counter() - killed:.2f} s", end="; ")
        else:
            print(f"{who} killed after step {done}: the run went on, and ended with {child.wait()}", end="; ")
    if child.returncode != 0:
        again = launch(root, steps)
        print(f"started again: {again.wait()}", end="; ")
    same = weights_digest(final_folder(open_run(str(root), NAME))) == expected
    print("same weights" if same else "OTHER WEIGHTS", flush=True)


def launch(root: Path, steps: int) -> subprocess.Popen[bytes]:
    """A process that trains the run under a root on two ranks; its group is known by the folder of its log."""
    root.mkdir(exist_ok=True)
    with (root / "log").open("ab") as log:
        command = [sys.executable, __file__, "train", str(root), "--steps", str(steps)]
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(root)})


def group_of(root: Path) -> dict[str, list[int]]:
    """Processes of a run's group by what they are, told by the folder in their command line."""
    found: dict[str, list[int]] = {"supervisor": [], "torchrun": [], "rank": []}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if not any(word.startswith(f"{root}/polyepo-trainer-") for word in words):
            continue
        kind = "supervisor" if words[1] == "-I" else "torchrun" if "torch.distributed.run" in words else "rank"
        found[kind].append(int(entry.name))
    return found


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["equality", "kills", "train"])
    parser.add_argument("root", nargs="?")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.what == "equality":
        equality(asked.steps or 250)
    elif asked.what == "kills":
        kills(asked.trials, asked.steps or 40, asked.seed)
    else:
        settings = {"resources.trainer.processes": 2, "checkpoint_every": 7, "policy.warm_start.steps": 50}
        train(asked.root, quickstart(steps=asked.steps, **settings))


if __name__ == "__main__":
    main()
