"""The ServerApp of Flower: it carries requests to the SuperNodes and their answers to the server.

The run's configuration names the files: agreement, key and directory, all on the server's machine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from cepam_jax import files
from cepam_jax.deploy import agreement, commands, keys, spent
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.flower_client import BODY, RECORD, REFUSED
from cepam_jax.deploy.server import Server
from cepam_jax.deploy.serving import Stalled, Waiting
from cepam_jax.errors import NonFiniteUpdateError
from cepam_jax.run import runtime

_POLL = 0.1  # seconds between looks for answers
app = ServerApp()


class Carrier:
    """Rounds of one server over a Grid; `run` is all that is called."""

    def __init__(self, server: Server, grid: Grid, log: Callable[..., None], waiting: Waiting | None = None):
        """Nothing is sent yet; the arguments as for `serving.Serving`."""
        self._server, self._grid, self._log = server, grid, log
        self._waiting = waiting or Waiting(again=60.0, closing=30.0)
        self._nodes: dict[int, int] = {}
        self._asked: dict[str, tuple[int, int | None, float]] = {}  # message -> node, client, when

    def run(self) -> None:
        """Until all rounds are done.

        Raises:
          Stalled: a round did not end in time.
        """
        while not self._server.finished:
            self._round()
        for client, node in self._nodes.items():
            self._push(node, client, self._server.done(client))
        end = time.monotonic() + self._waiting.closing
        while self._asked and time.monotonic() < end:
            self._pull()
            time.sleep(_POLL)

    def _round(self) -> None:
        config, opened = self._server.agreement.config.links, time.monotonic()
        while not self._server.enough:
            since = time.monotonic() - opened
            if config.ends != "slowest" and 0 < config.deadline <= since:
                break
            if since > self._waiting.patience:
                raise Stalled(f"round {self._server.round + 1} waits for {self._server.missing}")
            self._ask()
            time.sleep(_POLL)
            self._pull()
        seconds = time.monotonic() - opened
        self._log("round", **self._server.close_round(), seconds=round(seconds, 4))

    def _ask(self) -> None:
        """Greets new nodes, and asks who is missing and has not been asked, or not for long."""
        now = time.monotonic()
        gone = [name for name, (*_, when) in self._asked.items() if now - when > self._waiting.again]
        for name in gone:
            del self._asked[name]
        waiting = {node for node, _, _ in self._asked.values()}
        known = set(self._nodes.values())
        for node in self._grid.get_node_ids():
            if node not in known | waiting:
                self._push(node, None, self._server.hello())
        for client in self._server.missing:
            node = self._nodes.get(client)
            if node is not None and node not in waiting:
                self._push(node, client, self._server.request(client))

    def _push(self, node: int, client: int | None, data: bytes) -> None:
        content = RecordDict({RECORD: ConfigRecord({BODY: data})})
        message = Message(content=content, message_type="query", dst_node_id=node)
        for name in self._grid.push_messages([message]):
            if name:
                self._asked[name] = (node, client, time.monotonic())

    def _pull(self) -> None:
        for message in self._grid.pull_messages(list(self._asked)):
            asked = self._asked.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                continue
            if message.has_error():
                self._log("failed", node=asked[0], client=asked[1], reason=str(message.error.reason)[:200])
                continue
            self._taken(message.content.config_records[RECORD], *asked[:2])

    def _taken(self, record: Any, node: int, client: int | None) -> None:
        body = bytes(record[BODY])
        if record[REFUSED]:
            self._log("declined", node=node, client=client, reason=body.decode(errors="replace"))
        elif body:
            try:
                sender = self._server.receive(body)
            except Refused as error:
                self._log("refused", reason=error.name, client=client, detail=str(error))
                return
            if client is None:
                self._nodes[sender] = node
                self._log("joined", client=sender)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run of the server; the same `flwr run` goes on after a kill."""
    runtime.keep_compiled()
    config, directory = context.run_config, Path(str(context.run_config["directory"]))
    found = agreement.load(Path(str(config["agreement"])))
    server = Server(directory, found, keys.read_private(Path(str(config["key"]))))
    try:
        commands.log("started", round=server.round, rounds=found.rounds)
        if server.failed:  # in an earlier process
            raise NonFiniteUpdateError(server.failed)
        try:
            Carrier(server, grid, commands.log).run()
        finally:  # also of a run that is not finished
            files.write(directory / "privacy.txt", spent.report(server) + "\n")
        spent.write_model(server, directory / "model.npz")
        commands.log("finished", rounds=server.round, refused=server.refusals)
    finally:
        server.close()
