"""A federation put together in Python: own models, arrays, parts and loops, without a configuration.

  import cepam_jax as cepam

  task = cepam.tasks.classification(Net(), example=x[0])  # Net: any flax.linen module
  clients = cepam.clients({"inputs": x, "labels": y}, owners=owner)
  quantizer = cepam.mechanisms.chain(cepam.mechanisms.clip("l2"), cepam.mechanisms.lrsuq("gaussian"))
  federation = cepam.Federation(task, clients, quantizer, sigma=0.02, clip=1.0, optimizer=optax.adam(1e-3))
  state = federation.initialize()
  for _ in range(20):
      state, report = federation.step(state)
  print(federation.evaluate(state, test))
  print(federation.privacy(delta=1e-5))

Rounds, ledger and accountant are those of a configured run: an epsilon is derived from what the parts state
and from the knobs that the rounds applied; a part that states nothing has no guarantee.
"""

from collections.abc import Mapping
from typing import Any

from cepam_jax.extras import need

need("cepam_jax.Federation", "train")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax import privacy
from cepam_jax.data.clients import Clients
from cepam_jax.data.examples import number_of
from cepam_jax.errors import NonFiniteUpdateError
from cepam_jax.federated import Byzantine, Control, Downlink, Links, LocalUpdate, Plan, RoundReport, State
from cepam_jax.federated.rounds import initial_state, make_round
from cepam_jax.federated.state import ClientArrays
from cepam_jax.mechanisms import Knobs
from cepam_jax.run import assembly, blame, devices, evaluation, guarantees, parts, precision, uncovered
from cepam_jax.run.assembly import Seeds
from cepam_jax.run.ledger import Ledger, planned
from cepam_jax.run.states import check_state, model_of, shapes
from cepam_jax.tasks.base import Model, Task

__all__ = ["Federation", "Seeds"]

_AT_A_TIME = 1000  # of an evaluation


class Federation:
    """Clients that learn a task together; see the module for an example.

    Rounds are functions of the state alone, which the caller keeps; what was released is counted here. A step
    that is repeated is counted again, and one that would reuse noise for another update leaves no guarantee
    (see `run.account`). One process holds the whole federation.
    """

    def __init__(
        self,
        task: Task,
        clients: Clients,
        mechanism: Any,
        *,
        sigma: Any = None,
        clip: Any = None,
        knobs: Knobs | None = None,
        optimizer: Any = None,
        steps: Any = 1,
        batch_size: int = 32,
        local: LocalUpdate | None = None,
        aggregator: Any = "mean",
        control: Control | None = None,
        server: optax.GradientTransformation | None = None,
        downlink: Downlink | None = None,
        participants: int = 0,
        together: int = 0,
        error_feedback: bool = False,
        wire: bool = False,
        device_count: int = 1,
        seed: int | Seeds = 0,
        ledger: Ledger | None = None,
        byzantine: Byzantine | None = None,
        links: Links | None = None,
        seeded: bool = False,
        server_noise: str | None = None,
        participation: str = "fixed",
        **training: Any,
    ):
        """Builds and checks everything; nothing is compiled yet.

        Args:
          task: what is learned, from `cepam_jax.tasks`, or of your own.
          clients: from `cepam_jax.clients`.
          mechanism: how updates become messages; or a function of the shapes of the tensors that makes it.
          sigma: deviation of the noise, in units of the update; one number, or one for each client.
          clip: bound on an update's norm, likewise. `knobs`: all knobs, in place of these two.
          optimizer: of optax, or a function of the round int32[] that gives one; by default sgd.
          steps: local steps of a round; one number, or one for each client.
          batch_size: examples of each step.
          local: a local update of your own, in place of optimizer and batches; `steps` are in the arrays.
          aggregator: a rule, or the name of a registered one.
          control: the rule that sets the knobs of each round; by default they stay.
          server: optax optimizer fed with minus the aggregate; by default sgd(1.0), which adds it.
          downlink: how the model reaches the clients; by default as it is.
          participants: a random subset of so many clients takes part in a round; 0: all.
          together: clients trained at the same time on a device; 0: one on a CPU, all elsewhere.
          error_feedback: whether clients add what was lost to their next update.
          wire: whether messages are packed into bytes and unpacked again.
          device_count: devices over which clients are spread; 0: all.
          seed: of all randomness but the partition's; or `Seeds`. Keep it as secret as the data.
          ledger: of an earlier process, of the same parts.
          byzantine: who lies and how, and what the server checks; by default nobody and nothing.
          links: how fast each client's messages travel, and what ends a round; by default not known.
          seeded: whether clients make the first model themselves, so that nothing is sent for it.
          server_noise: law of noise that the server adds in place of the clients, "gaussian" or "laplace".
          participation: "poisson": each client takes part by itself, `participants` of them in the mean.
          **training: other fields of `federated.LocalTraining`, such as sampling or example_clip.

        Raises:
          ConfigError: names the argument that does not fit, and what would.
        """
        with jax.enable_x64(False):
            self._parts = assembly.assemble(
                task,
                clients,
                mechanism,
                parts.all_knobs(knobs, sigma, clip),
                optimizer=optimizer,
                steps=steps,
                batch_size=batch_size,
                training=training,
                local=local,
                aggregator=aggregator,
                control=control,
                server=server,
                downlink=downlink,
                participants=participants,
                together=together,
                error_feedback=error_feedback,
                wire=wire,
                device_count=device_count,
                seed=seed,
                byzantine=byzantine,
                links=links,
                seeded=seeded,
                server_noise=server_noise,
                participation=participation,
            )
        self._task, self._clients = task, clients
        ledger = parts.check_kind("ledger", Ledger() if ledger is None else ledger, Ledger, "a run.Ledger")
        self._account = assembly.account_of(self._parts, ledger)
        self._round, self._start = jax.jit(make_round(self.plan)), jax.jit(self._initial)
        self._like = shapes(self._start, self._parts.arrays.knobs)
        self._evaluate = jax.jit(evaluation.make_evaluate(task, _AT_A_TIME))
        self._evaluate_clients = jax.jit(evaluation.make_evaluate(task, _AT_A_TIME, "test"))

    @property
    def plan(self) -> Plan:
        """The parts of a round, as `federated.rounds` takes them."""
        return self._parts.plan

    @property
    def arrays(self) -> ClientArrays:
        """What the rounds read of the clients; rounds that you make of it yourself no ledger counts."""
        return self._parts.arrays

    @property
    def coordinates(self) -> int:
        """d, length of an update: trained parameters and statistics."""
        return sum(self.plan.segments)

    @property
    def ledger(self) -> Ledger:
        """What the steps applied; a federation in another process is given it to go on."""
        return self._account.whole

    def _initial(self, key, model: Model | None, knobs: Knobs) -> State:
        model = self._task.initialize(key) if model is None else model
        bound = jnp.float32(1) if knobs.clip is None else knobs.clip[0]
        return initial_state(self.plan, model, knobs, self._clients.number, self._parts.remembers, bound)

    def initialize(self, model: Model | None = None) -> State:
        """The state before the first round.

        Args:
          model: to begin with, of the same shapes as the task's; by default the task initializes one.

        Raises:
          ConfigError: the model is another one.
        """
        with jax.enable_x64(False):
            if model is not None:
                parts.check_alike(model, self._parts.model)
            state = self._start(jax.random.key(self._parts.seeds.model), model, self._parts.arrays.knobs)
            state = devices.put(state, self.plan.mesh)
            self._account.made(state)
        return state

    def step(self, state: State) -> tuple[State, RoundReport]:
        """One round; compiled the first time.

        Args:
          state: from `initialize` or `step`.

        Returns:
          The state after the round, and what each participant did. The report holds losses and norms of
          private updates without noise: it is for whoever may see the data.

        Raises:
          ConfigError: the state is of another federation.
          NonFiniteUpdateError: an update, what the server decoded, or the new model was NaN or infinite; says
            whose and why. Nothing was applied, and `state` is what it was.
        """
        with jax.enable_x64(False):
            after, report = self._round(check_state(state, self._like), self._parts.arrays)
            host = jax.tree.map(np.asarray, report)
            if not host.ran:
                self._account.failed(state, host)
                raise NonFiniteUpdateError(blame.of_parts(self.plan.mechanism, host, state, after))
            self._account.released(state, after, host)
        return after, report

    def evaluate(self, state: State, examples: Mapping[str, Any]) -> dict[str, float]:
        """The task's metrics of the model on examples like those of training.

        Args:
          state: whose model is evaluated.
          examples: name -> array [examples, ...].

        Raises:
          ConfigError: the state is of another model.
          DatasetError: examples are not like those of training.
        """
        arrays = parts.examples_like(examples, self._clients, self._task)
        with jax.enable_x64(False):
            tested = evaluation.HeldOut(arrays, self.arrays.constants)
            found = self._evaluate(model_of(state, self._like), tested, self.arrays, np.zeros(0, np.int32))
        return self._task.summarize(jax.tree.map(np.asarray, found.test), float(number_of(arrays)))

    def evaluate_clients(
        self, state: State, examples: Mapping[str, Any] | None = None, owners: Any = None
    ) -> dict[str, np.ndarray]:
        """The task's metrics client by client.

        Args:
          state: whose model is evaluated.
          examples: name -> array [examples, ...]; by default each client's own training examples.
          owners: [examples], whose each example is, as for `cepam_jax.clients`.

        Returns:
          name -> f64[clients], NaN for clients without examples.

        Raises:
          DatasetError: examples are not like those of training.
          ConfigError: examples without owners, or the other way round; the state is of another model.
        """
        parts.check_both("evaluate_clients", examples=examples, owners=owners)
        arrays = self._parts.arrays.examples
        if examples is not None:
            arrays = parts.examples_like(examples, self._clients, self._task)
        holder = self._clients.holders if owners is None else self._clients.owners_of(arrays, owners)
        with jax.enable_x64(False):
            tested = evaluation.HeldOut(arrays, self._parts.arrays.constants)
            found = self._evaluate_clients(model_of(state, self._like), tested, self._parts.arrays, holder)
        return evaluation.by_client(self._task, found)

    def facts(self, relation: str = "add_remove") -> guarantees.Facts:
        """What the parts state about privacy, as the accountant reads it."""
        return assembly.facts_of(self._parts, self._account, relation)

    def privacy(self, delta: float = 1e-5, relation: str = "add_remove", planned_rounds: int = 0) -> str:
        """The accountant's report on all steps so far: a line for each adversary, and what none covers.

        Args:
          delta: above 0 and below 1.
          relation: "add_remove" or "replace"; which federations are neighbours.
          planned_rounds: in place of the steps so far, so many rounds as they are planned from the start on.
        """
        if not (ledger := self._ledger_of(planned_rounds)).entries:
            return self._account.without_rounds
        federation = guarantees.federation_from(self.facts(relation), ledger)
        text = precision.report(self.plan.mechanism.about, federation, delta, self.coordinates)
        return uncovered.with_broadcast(text, self.plan.downlink is not None)

    def epsilons(
        self, delta: float = 1e-5, relation: str = "add_remove", planned_rounds: int = 0
    ) -> dict[str, np.ndarray]:
        """Adversary -> f64[clients]; zeros before a step; infinity: no guarantee, `privacy` says why."""
        if not (ledger := self._ledger_of(planned_rounds)).entries:
            return {n: np.zeros(self._clients.number) for n in privacy.adversaries(self.facts().about.summed)}
        federation = guarantees.federation_from(self.facts(relation), ledger)
        return {row.adversary: row.epsilon for row in privacy.report(federation, delta)}

    def _ledger_of(self, planned_rounds: int) -> Ledger:
        if not (rounds := parts.count("planned_rounds", planned_rounds, 2**31 - 1)):
            return self._account.ledger
        with jax.enable_x64(False):
            return planned(self.plan.control, self._parts.arrays.knobs, rounds)
