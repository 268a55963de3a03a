"""Stock Flower's side of `server_round.py`: an app of Flower's own parts, and a SuperNode that calls its ClientApp in its own process.

    server_round_app.py ADDRESS CERTIFICATE|-    that SuperNode

The SuperNode is flwr's own connection with flwr's own waits: 3 s between two questions for work. flwr's `flower-supernode` starts a Python
process for each message in addition, which takes longer than the round of a small policy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedProx

PIECE = 4 * 2**20
SUPERNODE_WAIT_S = 3.0
"""What `flower-supernode` waits when there is no message."""

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """No training: the weights, a little changed, by another amount on each node."""
    change = np.float32(1e-7 * (1 + context.node_id % 1000))
    arrays = {name: Array(array.numpy() + change) for name, array in message.content["arrays"].items()}
    metrics = MetricRecord({"num-examples": 100, "loss": 1.0})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedProx as flwr ships it. When each round was over goes into the file `said`, line by line."""
    asked, said = context.run_config, Path(str(context.run_config["said"]))
    values, nodes = int(asked["values"]), int(asked["nodes"])
    rng = np.random.default_rng(7)
    sizes = [min(PIECE, values - start) for start in range(0, values, PIECE)]
    weights = {f"{number:06d}": Array(rng.standard_normal(size, dtype=np.float32)) for number, size in enumerate(sizes)}

    def tell(**facts: object) -> None:
        with said.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    tell(pid=os.getpid())

    def after(number: int, _arrays: ArrayRecord) -> None:
        tell(round=number, time=time.time())

    strategy = FedProx(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, proximal_mu=0.01)
    strategy.start(grid, ArrayRecord(weights), num_rounds=int(asked["rounds"]), evaluate_fn=after)


def supernode(address: str, certificate: str) -> None:
    """Answer train messages until this process is ended."""
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        iterate_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
    from flwr.supernode.fleet_http_connection import http_request_response

    with http_request_response(address, certificate == "-", None if certificate == "-" else certificate) as connection:
        node_id, receive, send, _, _, pull, push, confirm = connection
        while True:
            if (received := receive()) is None:
                time.sleep(SUPERNODE_WAIT_S)
                continue
            envelope, tree = received
            run = envelope.metadata.run_id
            contents = pull_objects([each.object_id for each in iterate_object_tree(tree)], lambda name, run=run: pull(run, name))
            confirm(run, tree.object_id)
            message = inflate_object_from_contents(tree.object_id, contents)
            message.metadata.__dict__["_message_id"] = tree.object_id
            reply = client(message, Context(run_id=run, node_id=node_id, node_config={}, state=RecordDict(), run_config={}))
            del message, contents
            reply.metadata.__dict__["_message_id"] = reply.object_id
            with no_object_id_recompute():
                objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
                wanted, session = send(reply, tree, 0.0)

                def store(name: str, content: bytes, run: int = run, session: str = session) -> None:
                    push(run, session, name, content)

                push_objects(objects, store, object_ids_to_push=wanted)
            del reply, objects


if __name__ == "__main__":
    supernode(*sys.argv[1:])
