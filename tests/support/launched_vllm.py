"""A program that takes the arguments of vLLM's API server, for tests of servers that a run launches."""

import argparse
import os
import signal
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from polyepo.testing.vllm_server import FakeVLLM


def main():
    """Serve a model directory; with FAKE_DIE, the first to count so many completions dies of SIGKILL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    parser.add_argument("--max-model-len", type=int)
    arguments, _ = parser.parse_known_args()
    if "FAKE_REFUSE" in os.environ:
        raise ValueError("head size 16 is not supported")
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    server = FakeVLLM(model, arguments.port, arguments.served_model_name, arguments.max_model_len)
    notes = Path(os.environ["FAKE_NOTES"])
    with (notes / "servers").open("a") as file:
        file.write(f"{os.getpid()} {arguments.model}\n")

    def completed():
        (prompt, seed), count = list(server.answered.items())[-1]
        with (notes / "answered").open("a") as file:
            file.write(f"{prompt} {seed} {count}\n")
        if sum(server.answered.values()) == int(os.environ.get("FAKE_DIE", 0)) and not (notes / "died").exists():
            (notes / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    server.on_completion = completed
    server.serve_forever()


if __name__ == "__main__":
    main()
