"""The ServerApp of Flower: it carries requests to the SuperNodes and their answers to the server.

The run's configuration names the files: agreement, key and directory, all on the server's machine.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from cepam_jax.deploy import agreement, commands, envelope, joining, keys, relay, spent
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.flower_client import BODY, RECORD, REFUSED
from cepam_jax.deploy.server import Server
from cepam_jax.deploy.serving import Stalled, Waiting
from cepam_jax.errors import NonFiniteUpdateError
from cepam_jax.run import runtime

_POLL = 0.1  # seconds between looks for answers
_SHOWN = 200  # characters of what a node says that are logged
app = ServerApp()


class Carrier:
    """Rounds of one server over a Grid; `run` is all that is called."""

    def __init__(self, server: Server, grid: Grid, log: Callable[..., None], waiting: Waiting | None = None):
        """Nothing is sent yet; the arguments as for `serving.Serving`."""
        self._server, self._grid, self._log = server, grid, log
        self._waiting = waiting or Waiting(again=60.0, closing=30.0)
        self._nodes: dict[int, int] = {}
        self._asked: dict[str, tuple[int, int | None, float]] = {}  # message -> node, client, when
        self._challenges: dict[int, bytes] = {}  # node -> that of its last greeting
        self._due: dict[int, float] = {}  # node that answered with an error -> when it is asked again
        self._clock: float | None = None  # when the first who was drawn was sent the open round's request

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
        limited, self._clock = config.ends != "slowest" and config.deadline > 0, None
        while not self._server.enough:
            now = time.monotonic()
            # The deadline of a round that nobody was asked in does not pass.
            if limited and self._clock is not None and now - self._clock >= config.deadline:
                break
            if now - opened > self._waiting.patience:
                raise Stalled(f"round {self._server.round + 1} waits for {self._server.missing}")
            self._ask()
            time.sleep(_POLL)
            self._pull()
        took = time.monotonic() - opened
        found = self._server.close_round()
        del found["bytes"]  # where lengths depend on the update, one says something of that
        self._log("round", **found, took=round(took, 4))

    def _ask(self) -> None:
        """Greets new nodes, and asks who is missing and has not been asked, or not for long."""
        now = time.monotonic()
        gone = [name for name, (*_, when) in self._asked.items() if now - when > self._waiting.again]
        for name in gone:
            del self._asked[name]
        self._due = {node: when for node, when in self._due.items() if when > now}
        waiting = {node for node, _, _ in self._asked.values()} | self._due.keys()
        known = set(self._nodes.values())
        for node in self._grid.get_node_ids():
            if node not in known | waiting:
                self._challenges[node] = joining.challenge()
                self._push(node, None, self._server.hello(self._challenges[node]))
        for client in self._server.missing:
            node = self._nodes.get(client)
            if node is not None and node not in waiting:
                pushed = self._push(node, client, self._server.request(client))
                if pushed and self._clock is None:
                    self._clock = time.monotonic()

    def _push(self, node: int, client: int | None, data: bytes) -> bool:
        """Whether Flower has taken it."""
        content = RecordDict({RECORD: ConfigRecord({BODY: data})})
        message = Message(content=content, message_type="query", dst_node_id=node)
        names = [name for name in self._grid.push_messages([message]) if name]
        for name in names:
            self._asked[name] = (node, client, time.monotonic())
        return bool(names)

    def _pull(self) -> None:
        for message in self._grid.pull_messages(list(self._asked)):
            asked = self._asked.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                continue
            node, client, _ = asked
            if message.has_error():
                self._failed(node, client, "failed", str(message.error.reason)[:_SHOWN])
            elif not message.has_content():
                self._failed(node, client, "malformed", "no content")
            else:
                self._taken(message.content.config_records.get(RECORD), node, client)

    def _failed(self, node: int, client: int | None, event: str, reason: str) -> None:
        """Logs it; the node is left alone for a while, as it would answer the same at once, for ever."""
        self._due[node] = time.monotonic() + self._waiting.again
        self._log(event, node=node, client=client, reason=reason)

    def _taken(self, record: Mapping[str, Any] | None, node: int, client: int | None) -> None:
        limit = joining.JOINING if client is None else self._server.limit + envelope.OVERHEAD
        body = relay.body_of(record, BODY, limit)
        refused = None if record is None else record.get(REFUSED)
        if body is None or not isinstance(refused, bool):
            self._failed(node, client, "malformed", f"{BODY} is no bytes, or more than {limit}")
        elif refused:
            self._failed(node, client, "declined", body[:_SHOWN].decode(errors="replace"))
            if client is not None and body == b"foreign":  # its worker is new, and wants to be greeted
                self._nodes.pop(client, None)
        elif body:
            self._received(body, node, client)

    def _received(self, body: bytes, node: int, client: int | None) -> None:
        try:
            # Without a greeting nothing fits, but nothing else is taken of who has not joined.
            challenge = self._challenges.pop(node, b"") if client is None else None
            sender = self._server.receive(body, challenge)
        except Refused as error:
            if error.name != "stale":  # late for its round, but good for the next
                self._due[node] = time.monotonic() + self._waiting.again
            who = error.client if client is None else client
            self._log("refused", reason=error.name, client=who, detail=str(error))
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
        # Also of a run that is not finished.
        with commands.leaving(directory / "privacy.txt", lambda: spent.report(server) + "\n"):
            Carrier(server, grid, commands.log).run()
        spent.write_model(server, directory / "model.npz")
        commands.log("finished", rounds=server.round, refused=server.refusals)
    finally:
        server.close()
