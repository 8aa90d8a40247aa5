"""Mathematical problems in the layouts of GSM8K and MATH-500, and a run on them."""

import json

from polyepo.config import parse_config

OWN = [("Janet has 3 ducks and buys {} more. How many ducks has she?", 3), ("What is {} times 2 less {0}?", 0)]


def own_files(folder):
    """A few problems in the layouts of GSM8K and MATH-500."""
    gsm8k = [
        {"question": text.format(i, i), "answer": f"She counts.\n#### {i + more:,}"}
        for i in range(1, 9)
        for text, more in [OWN[0]]
    ]
    math500 = [
        {"problem": f"Find ${i} + {i}$.", "solution": f"$\\boxed{{{2 * i}}}$", "answer": str(2 * i), "level": 1 + i % 5}
        for i in range(1, 9)
    ]
    files = {"train": gsm8k[:6], "test": gsm8k[6:], "math500": math500}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "train.jsonl", folder / "test.jsonl", folder / "math500.jsonl"


def config_of(model, files, **changes):
    raw = {
        "steps": 2,
        "domain": {
            "name": "maths",
            "path": str(files[0]),
            "heldout_path": str(files[1]),
            "chat": True,
            "template": "{problem}",
            "system_prompt": "Put the final answer in \\boxed{}.",
        },
        "policy": {
            "model": model, "device": "cpu", "num_threads": 1, "chat_template_kwargs": {"enable_thinking": False}
        },
        "sampling": {
            "prompts_per_step": 4, "num_responses": 4, "max_prompt_tokens": 3000, "max_response_tokens": 64,
            "batch_size": 16,
        },
        "judge": {"name": "program"},
        # Without it nothing would have an advantage: no answer is right.
        "scoring": {"method": "grpo", "overlong_penalty": {"buffer_tokens": 64}},
        "update": {"lr": 1e-2, "overlong_filtering": True},
        "evaluation": {"num_samples": 2, "k": [1], "max_problems": 2},
    }  # fmt: skip
    return parse_config({**raw, **changes}).runs("m")["m"]
