"""verl as far as `polyepo.integrations.verl` touches it: the real one where it is installed, else a stand-in.

The stand-in has verl 0.9.1's registries, the call of an estimator as `compute_advantage` makes it, and what a trainer's
`_compute_advantage` reads and writes. In both cases the queue is a dictionary: the real one needs Ray.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

REAL = importlib.util.find_spec("verl") is not None


class Config(dict):
    """A mapping with attributes, as OmegaConf's are."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Queue:
    """TransferQueue's key-value calls."""

    def __init__(self):
        self.rows = {}

    def kv_batch_get(self, keys, partition_id, select_fields):
        found = [{name: self.rows[key][name] for name in select_fields if name in self.rows[key]} for key in keys]
        if REAL:
            from verl.utils.tensordict_utils import list_of_dict_to_tensordict

            return list_of_dict_to_tensordict(found)
        return {
            name: torch.nested.as_nested_tensor([row[name] for row in found], layout=torch.jagged)
            if isinstance(found[0][name], torch.Tensor)
            else [row[name] for row in found]
            for name in found[0]
        }

    def kv_batch_put(self, keys, partition_id, fields):
        for name in fields.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
            for key, value in zip(keys, fields[name].unbind(), strict=True):
                self.rows[key][name] = value
        return batch(keys, [{} for _ in keys])


def _stand_in(queue):
    estimators, trainers = {}, {}

    def register(registry, name):
        def decorate(made):
            if registry.get(name, made) is not made:
                raise ValueError(f"{name} has already been registered")
            registry[name] = made
            return made

        return decorate

    class PPOTrainerSync:
        def __init__(self, config):
            self.config = config

        def _compute_advantage(self, batch, metrics):
            data = queue.kv_batch_get(batch.keys, batch.partition_id, ["uid", "response_mask", "rm_scores"])
            mask = data["response_mask"].to_padded_tensor(0)
            advantages, _ = estimators[self.config.algorithm.adv_estimator](
                token_level_rewards=data["rm_scores"].to_padded_tensor(0.0),
                response_mask=mask,
                config=self.config.algorithm,
                index=np.array(data["uid"], dtype=object),
            )
            lengths = data["response_mask"].offsets().diff()
            rows = [advantages[i, : lengths[i]] for i in range(len(lengths))]
            nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
            return queue.kv_batch_put(batch.keys, batch.partition_id, {"advantages": nested})

    return {
        "transfer_queue": {},
        "verl": {},
        "verl.trainer": {},
        "verl.trainer.ppo": {},
        "verl.trainer.ppo.core_algos": {
            "register_adv_est": lambda name: register(estimators, name),
            "get_adv_estimator_fn": estimators.__getitem__,
        },
        "verl.trainer.ppo.v1": {"get_trainer_cls": trainers.__getitem__},
        "verl.trainer.ppo.v1.trainer_base": {"register_trainer": lambda name: register(trainers, name)},
        "verl.trainer.ppo.v1.trainer_sync": {"PPOTrainerSync": PPOTrainerSync},
    }


def install(monkeypatch):
    """Make verl importable, with a queue that is a dictionary; returns the queue."""
    queue = Queue()
    if not REAL:
        for name, content in _stand_in(queue).items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name, module)
    import transfer_queue

    for verb in ("kv_batch_get", "kv_batch_put"):
        monkeypatch.setattr(transfer_queue, verb, getattr(queue, verb), raising=False)
    return queue


def config(num_responses, folder, **poly_epo):
    """verl's own configuration, as far as it is read."""
    if REAL:
        from hydra import compose, initialize_config_module

        overrides = [f"actor_rollout_ref.rollout.n={num_responses}", f"trainer.default_local_dir={folder}"]
        overrides += ["algorithm.adv_estimator=poly_epo", "trainer.v1.trainer_mode=poly_epo"]
        overrides += [f"+poly_epo.{name}={value}" for name, value in poly_epo.items()]
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose("ppo_trainer", overrides=[*overrides, "actor_rollout_ref.model.path=none"])
    return Config(
        actor_rollout_ref=Config(rollout=Config(n=num_responses)),
        trainer=Config(default_local_dir=str(folder), v1=Config(trainer_mode="poly_epo")),
        algorithm=Config(adv_estimator="poly_epo"),
        poly_epo=Config(poly_epo),
    )


def batch(keys, tags):
    """A batch of the queue's keys."""
    if REAL:
        from transfer_queue import KVBatchMeta

        return KVBatchMeta(keys=keys, tags=tags, partition_id="train")
    return SimpleNamespace(keys=keys, tags=tags, partition_id="train", extra_info={})
