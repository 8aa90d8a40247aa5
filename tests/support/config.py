"""A complete configuration of a tiny run."""


def small_config(**changes):
    """A complete run of a tiny model on a tiny domain, as a dictionary; sections in `changes` are merged in."""
    config = {
        "steps": 6,
        "domain": {"name": "polynomial", "max_abs_b": 2, "max_c": 3},
        "policy": {
            "warm_start": {"steps": 250, "batch_size": 64, "hidden_size": 32, "num_layers": 1, "intermediate_size": 64},
            "device": "cpu",
            "num_threads": 1,
        },
        "sampling": {"prompts_per_step": 4, "num_responses": 4, "max_prompt_tokens": 8, "max_response_tokens": 8},
        "judge": {"name": "program"},
        "scoring": {"method": "poly_epo", "set_size": 2},
        "update": {"lr": 1e-3},
        "evaluation": {"num_samples": 4, "k": [1, 4]},
        "checkpoint_every": 4,
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and not {"name", "method"} & value.keys()
        config[key] = {**config.get(key, {}), **value} if merge else value
    return config


ARMS = {"grpo": {"scoring": {"method": "grpo"}}, "poly": {"scoring": {"method": "poly_epo", "set_size": 2}}}
