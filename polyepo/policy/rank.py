"""What torchrun starts for every rank of a trainer group: `python -m polyepo.policy.rank SOCKET KIND`."""

from __future__ import annotations

import sys

from polyepo.supervisor import die_with_parent

if __name__ == "__main__":
    # Before torch is imported, which takes seconds: torchrun gives each rank a session of its own, so that nothing else
    # would end it.
    die_with_parent(called="torch.distributed.run")
    from polyepo.policy.worker import main

    main(*sys.argv[1:])
