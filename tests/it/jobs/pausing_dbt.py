"""Is dbt, but after each model says which it was, and goes on when it is told to."""

import sys

from dbt.cli.main import dbtRunner


def pause(event):
    if event.info.name == "NodeFinished":
        print("finished", event.data.node_info.node_name, flush=True)
        sys.stdin.readline()


result = dbtRunner(callbacks=[pause]).invoke(sys.argv[1:])
sys.exit(0 if result.success else 1)
