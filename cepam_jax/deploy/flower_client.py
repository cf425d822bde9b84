"""The ClientApp of Flower: it hands a message's bytes to the worker beside it, and brings back the answer.

Flower starts a process for it with each message, so it imports neither JAX nor the rest of this package. The
SuperNode is told where the worker is: --node-config 'worker="/tmp/fed/client0/worker.sock"'.

Beutel, Topal, Mathur, Qiu, Fernandez-Marques, Gao, Sani, Li, Parcollet, de Gusmão, Lane: Flower: A Friendly
Federated Learning Framework, arXiv 2007.14390.
"""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from cepam_jax.deploy import relay

RECORD, BODY, REFUSED = "cepam_jax", "body", "refused"
app = ClientApp()


@app.query()
def answer(message: Message, context: Context) -> Message:
    """The worker's answer to a message."""
    body = relay.body_of(message.content.config_records.get(RECORD), BODY, relay.LONGEST)
    if body is None:
        answered, found = False, b"malformed"
    else:
        answered, found = relay.ask(str(context.node_config["worker"]), body)
    content = ConfigRecord({BODY: found, REFUSED: not answered})
    return Message(content=RecordDict({RECORD: content}), reply_to=message)
