"""What the processes of one run agree on before Lightning brings them together.

Lightning's own launcher starts the others when the first has its folder and its data. `torchrun` starts all at once,
and keeps a store that they can reach.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from itertools import count

from torch.distributed import TCPStore

LONGEST_WAIT = timedelta(days=1)  # of a download; torchrun ends the others where the first fails
_calls = count()


def agree(decide: Callable[[], object]) -> str:
    """Return as text what the first process decides, and in the others wait for it; without `torchrun` each decides.

    Every process makes the same calls in the same order.
    """
    number = next(_calls)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return str(decide())
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=LONGEST_WAIT)
    key = f"dogbreed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{number}"
    if os.environ["RANK"] == "0":
        store.set(key, str(decide()))
    return store.get(key).decode()
