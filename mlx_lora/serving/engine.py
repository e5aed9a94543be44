"""The thread that owns the model: requests become rows of one running batch, and adapters come and go beside them.

All work of MLX is done here, between the steps of the batch. Knows nothing of HTTP.
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlx_lora.model.continuous import ContinuousBatch, Token, batches_rows, leave_thread, refuse_unjoinable
from mlx_lora.model.load import LoadedModel
from mlx_lora.model.stream import make_sampler
from mlx_lora.serving.answer import AnswerText, Finished, Likelihood
from mlx_lora.serving.job import Answers, Event, Job
from mlx_lora.serving.limits import Limits
from mlx_lora.serving.metrics import Metrics
from mlx_lora.serving.refusals import failed, overloaded, stopping, timed_out, too_many, unknown_model
from mlx_lora.serving.residents import Residents

log = logging.getLogger("mlx_lora.serving")
_SEEDS = 2**32


@dataclass
class _Row:
    job: Job
    text: AnswerText
    reused: int
    begun: float
    before: int | None  # the token that its text goes on from
    tokens: int = 0


class Engine:
    """One base, its adapters, the running batch and the queue before it."""

    def __init__(self, load: Callable[[], LoadedModel], limits: Limits, metrics: Metrics) -> None:
        """`load` is called in the engine's thread: what MLX makes belongs to a thread."""
        self.limits = limits
        self._metrics = metrics
        self._load = load
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._gone: list[Job] = []
        self._stopping = False
        self._rows: dict[int, _Row] = {}
        self._mail: list[tuple[Job, Event]] = []
        self._row_seconds = 2.0  # of an answer, on the average of late: what Retry-After goes by
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._ready: Future[Residents] = Future()
        self.shares_batches = True

    def start(self) -> Residents:
        """Load the base and begin; return who can be asked. Raises: what loading raises."""
        self._thread.start()
        return self._ready.result()

    def stop(self) -> None:
        """Finish what was begun, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread still answers."""
        return self._thread.is_alive()

    def submit(self, jobs: Iterable[Job]) -> None:
        """Let the answers of one request wait for rows, all or none. Raises: Refusal where they have no place."""
        jobs = list(jobs)
        with self._wake:
            if self._stopping or not self.alive:
                raise stopping()
            limits, places = self.limits, self.limits.rows + self.limits.waiting
            if len(jobs) > places:
                raise too_many(len(jobs), places)
            if len(self._waiting) + len(self._rows) + len(jobs) > places:
                turns = 1 + len(self._waiting) / limits.rows
                raise overloaded(len(self._waiting), min(60, max(1, round(turns * self._row_seconds))))
            self._waiting.extend(jobs)
            self._wake.notify()

    def cancel(self, answers: Answers) -> None:
        """Free the rows of these answers with the next step."""
        with self._wake:
            self._gone += answers.jobs
            self._wake.notify()

    def call(self, work: Callable[[], Any]) -> "Future[Any]":
        """Have `work` done in the engine's thread, between two steps."""
        done: Future[Any] = Future()
        with self._wake:
            if self._stopping or not self.alive:
                done.set_exception(stopping())
                return done
            self._calls.append((work, done))
            self._wake.notify()
        return done

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            leave_thread()

    def _serve(self) -> None:
        try:
            base = self._load()
            refuse_unjoinable(base.model)
            residents = Residents(base)
            if not batches_rows(base.model):
                self.shares_batches = False
            batch = ContinuousBatch(
                base.model, residents.use_owners, cache_bytes=self.limits.cache_bytes, most_rows=self.limits.rows
            )
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(residents)
        try:
            while self._turn(batch, residents):
                self._deliver()
            self._deliver()
        except BaseException:
            log.exception("the engine has ended; restart the server")
            self._end()
        finally:
            batch.close()

    def _turn(self, batch: ContinuousBatch, residents: Residents) -> bool:
        """Do what has come, and one step of the batch; False when all is done and the server ends."""
        with self._wake:
            while not (self._rows or self._waiting or self._calls or self._gone or self._stopping):
                self._wake.wait()
            calls, self._calls = self._calls, deque()
            gone, self._gone = self._gone, []
        for work, done in calls:
            _settle(work, done)
        self._drop(batch, gone)
        self._expire(batch)
        try:
            self._admit(batch, residents)
            for token in batch.step() if self._rows else ():
                self._take(batch, token)
        except Exception:
            self._fail(batch)
        residents.drop_unused({row.job.speaker.owner for row in self._rows.values()} | self._waiting_owners())
        self._metrics.gauges(
            rows=len(self._rows),
            waiting=len(self._waiting),
            cache_bytes=batch.cached_bytes,
            adapter_bytes=residents.nbytes,
        )
        return bool(self._rows or self._waiting or not self._stopping)

    def _waiting_owners(self) -> set[int | None]:
        with self._wake:
            return {job.speaker.owner for job in self._waiting}

    def _admit(self, batch: ContinuousBatch, residents: Residents) -> None:
        """Give rows to those who wait, in the order in which they came."""
        limit = self.limits.rows if self.shares_batches else 1
        while len(self._rows) < limit:
            held = sum(row.job.tokens for row in self._rows.values())
            with self._wake:
                if not self._waiting or (self._rows and held + self._waiting[0].tokens > self.limits.batch_tokens):
                    return
                job = self._waiting.popleft()
            if not residents.has(job.speaker.owner):  # unloaded since the request looked it up
                self._mail.append((job, unknown_model(job.speaker.name, residents.speakers)))
                continue
            try:
                self._begin(batch, job)
            except Exception:  # nothing has joined the batch: the other rows go on
                log.exception("answer %d could not be begun", job.number)
                self._mail.append((job, failed(f"answer {job.number}")))

    def _begin(self, batch: ContinuousBatch, job: Job) -> None:
        """Give a row to this one."""
        wanted, tokenizer = job.wanted, job.speaker.tokenizer
        sampler = None
        if wanted.temperature > 0:
            seed = secrets.randbelow(_SEEDS) if wanted.seed is None else (wanted.seed + job.choice) % _SEEDS
            sampler = make_sampler(wanted.temperature, wanted.top_p, seed)
        before = job.prompt[-1] if wanted.continues else None
        text = AnswerText(tokenizer.stream_decoder(after=() if before is None else [before]), wanted.stops)
        row, reused = batch.insert(
            job.prompt,
            job.speaker.owner,
            max_tokens=wanted.max_tokens,
            ends=tokenizer.eos_ids,
            sampler=sampler,
        )
        self._rows[row] = _Row(job, text, reused, time.monotonic(), before)

    def _take(self, batch: ContinuousBatch, token: Token) -> None:
        """Pass on what a token adds to its answer."""
        row = self._rows[token.row]
        likelihood = None
        if token.end != "stop":
            row.tokens += 1
            likelihood = _likelihood(token, row.job.wanted.likelihoods, row.before)
            row.before = token.token
            delta = row.text.add(token.token, likelihood)
            if delta.text or delta.likelihoods:
                self._mail.append((row.job, delta))
        if row.text.stopped and token.end is None:
            batch.remove(token.row)
        if token.end is None and not row.text.stopped:
            return
        rest = row.text.finish()
        if rest.text or rest.likelihoods:
            self._mail.append((row.job, rest))
        reason = "stop" if row.text.stopped or token.end == "stop" else "length"
        self._mail.append((row.job, Finished(reason, len(row.job.prompt), row.reused, row.tokens)))
        self._row_seconds += 0.1 * (time.monotonic() - row.begun - self._row_seconds)
        del self._rows[token.row]

    def _drop(self, batch: ContinuousBatch, jobs: list[Job]) -> None:
        """Let the rows of those who have gone leave."""
        if not jobs:
            return
        gone = set(jobs)
        with self._wake:
            self._waiting = deque(job for job in self._waiting if job not in gone)
        for number, row in list(self._rows.items()):
            if row.job in gone:
                batch.remove(number)
                del self._rows[number]

    def _expire(self, batch: ContinuousBatch) -> None:
        now = time.monotonic()
        with self._wake:
            late = [job for job in self._waiting if job.deadline < now]
        late += [row.job for row in self._rows.values() if row.job.deadline < now]
        self._drop(batch, late)
        self._mail += [(job, timed_out(self.limits.request_seconds)) for job in late]

    def _fail(self, batch: ContinuousBatch) -> None:
        """A step failed: say so to all whose rows were in it, and go on with a new batch."""
        log.exception("a step of the batch failed; %d answers are lost", len(self._rows))
        self._mail += [(row.job, failed("step")) for row in self._rows.values()]
        self._rows.clear()
        batch.clear()

    def _end(self) -> None:
        """Tell all who wait that nobody will answer them."""
        with self._wake:
            self._stopping = True
            lost = [*self._waiting, *(row.job for row in self._rows.values())]
            for _, done in self._calls:
                if done.set_running_or_notify_cancel():
                    done.set_exception(stopping())
        self._mail += [(job, stopping()) for job in lost]
        self._deliver()

    def _deliver(self) -> None:
        """Hand over the events of this turn, once to each event loop."""
        mail, self._mail = self._mail, []
        for loop in {job.answers.loop for job, _ in mail}:
            letters = [(job, event) for job, event in mail if job.answers.loop is loop]
            with suppress(RuntimeError):  # the loop was closed: its clients have gone
                loop.call_soon_threadsafe(_hand_over, letters)


def _hand_over(letters: list[tuple[Job, Event]]) -> None:
    for job, event in letters:
        job.answers.deliver(job.choice, event)


def _settle(work: Callable[[], Any], done: "Future[Any]") -> None:
    if not done.set_running_or_notify_cancel():  # who asked for it has gone
        return
    try:
        result = work()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(result)


def _likelihood(token: Token, wanted: int | None, before: int | None) -> Likelihood | None:
    if wanted is None:
        return None
    *top, own = token.likeliest(wanted)
    return Likelihood(*own, tuple(top), before)
