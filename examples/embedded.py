"""Reminders over TCP: a scheduler inside a bigger Trio program.

A client sends lines, and gets lines back:

    remind <seconds> <text>     scheduled <id>, and at its time: reminder <id> <text>
    cancel <id>                 cancelled <id>, or: too late <id>

Anything else is answered by: error <what is wrong>. Reminders of a client that hangs up
are cancelled. Run as a script, it serves one client of its own, and ends.
"""

import itertools
from contextlib import suppress

import attrs
import trio

from trio_gokugen import (
    InvalidTaskError,
    RefusedError,
    Scheduler,
    TaskNotFoundError,
    TaskQuery,
    TaskState,
    WorkRegistry,
    current_task,
    open_scheduler,
)

LONGEST_LINE = 1000
SEND_TIMEOUT = 5.0
HUNG_UP = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


class LineTooLongError(Exception):
    """The other side has sent more than a line may have."""


@attrs.define(eq=False)
class LineStream:
    """Lines on a stream."""

    stream: trio.SocketStream
    _received: bytearray = attrs.field(factory=bytearray, init=False)

    async def receive(self) -> bytes | None:
        """The next line; none if the other side has hung up."""
        while self._received.find(b"\n", 0, LONGEST_LINE + 1) < 0:
            if len(self._received) > LONGEST_LINE:
                raise LineTooLongError
            chunk = await self.stream.receive_some()
            if not chunk:
                return None  # half a line is no line
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return bytes(line)

    async def send(self, line: str) -> None:
        try:
            with trio.fail_after(SEND_TIMEOUT):
                await self.stream.send_all(line.encode() + b"\n")
        except BaseException:
            # Half a line may have been sent, which nothing must follow.
            await trio.aclose_forcefully(self.stream)
            raise


@attrs.define(eq=False)
class Client:
    """Somebody who is connected."""

    name: str
    lines: LineStream
    turn: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    """Who holds it may send."""


class ReminderService:
    """Who is connected, and the scheduler that reminds them."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self.works = WorkRegistry()
        self.works.register("remind", self.remind)
        self.clients: dict[str, Client] = {}
        self._names = (f"client-{number}" for number in itertools.count(1))

    async def run(
        self,
        port: int = 0,
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled."""
        async with open_scheduler(self.works, max_workers=100) as self.scheduler:
            await trio.serve_tcp(
                self.serve, port, host="127.0.0.1", task_status=task_status
            )

    async def remind(self, client: str, text: str) -> None:
        """The work: runs at the appointed time."""
        receiver = self.clients.get(client)
        if receiver is None:
            return  # hung up a moment ago
        async with receiver.turn:
            await receiver.lines.send(f"reminder {current_task().id} {text}")

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one client for as long as it stays."""
        client = Client(next(self._names), LineStream(stream))
        self.clients[client.name] = client
        try:
            await self._answer_all(client)
        except HUNG_UP:
            pass
        finally:
            del self.clients[client.name]
        # Not in the `finally`: a service that is cancelled reminds nobody anyway.
        await self._cancel_all(client)

    async def _answer_all(self, client: Client) -> None:
        try:
            while (line := await client.lines.receive()) is not None:
                # Held from the request to its answer: a reminder that is due at once
                # must not overtake the answer that tells its id.
                async with client.turn:
                    await client.lines.send(await self._answer(client, line))
        except LineTooLongError:
            async with client.turn:
                await client.lines.send(f"error more than {LONGEST_LINE} bytes a line")

    async def _answer(self, client: Client, line: bytes) -> str:
        try:
            command, _, rest = line.decode().strip().partition(" ")
        except UnicodeDecodeError:
            return "error lines must be UTF-8"
        match command:
            case "remind":
                return await self._remind(client, rest.strip())
            case "cancel":
                return await self._cancel(client, rest.strip())
            case _:
                return "error say: remind <seconds> <text>, or: cancel <id>"

    async def _remind(self, client: Client, rest: str) -> str:
        seconds, _, text = rest.partition(" ")
        try:
            after = float(seconds)
        except ValueError:
            return f"error {seconds!r} is not a number of seconds"
        if not text:
            return "error remind you of what?"
        try:
            task = await self.scheduler.add_task(
                "remind",
                {"client": client.name, "text": text.strip()},
                after=after,
                meta={"client": client.name},
            )
        except InvalidTaskError as error:
            return f"error {error}"
        return f"scheduled {task.id}"

    async def _cancel(self, client: Client, task_id: str) -> str:
        try:
            task = await self.scheduler.get(task_id)
        except (TaskNotFoundError, InvalidTaskError):
            task = None
        if task is None or task.meta["client"] != client.name:
            return f"error you have no reminder {task_id!r}"
        try:
            await self.scheduler.cancel(task_id)
        except RefusedError:
            return f"too late {task_id}"  # it is on its way, or was sent
        return f"cancelled {task_id}"

    async def _cancel_all(self, client: Client) -> None:
        mine = TaskQuery(states={TaskState.SCHEDULED}, meta={"client": client.name})
        for task in await self.scheduler.find(mine, limit=None):
            with suppress(RefusedError):
                await self.scheduler.cancel(task.id)


# -- the demo -----------------------------------------------------------------------


async def ask(lines: LineStream, question: str) -> str:
    print(f"client:  {question}")
    await lines.send(question)
    return await hear(lines)


async def hear(lines: LineStream) -> str:
    line = await lines.receive()
    assert line is not None
    print(f"service: {line.decode()}")
    return line.decode()


async def talk(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        lines = LineStream(stream)
        tea = await ask(lines, "remind 0.5 tea is ready")
        eggs = await ask(lines, "remind 0.8 the eggs are done")
        await ask(lines, eggs.replace("scheduled", "cancel"))
        await ask(lines, "remind soon dinner")
        await hear(lines)
        await ask(lines, tea.replace("scheduled", "cancel"))
        await ask(lines, "remind 3600 an hour has passed")
    print("client hangs up")


async def main() -> None:
    service = ReminderService()
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(service.run)
        address, port = listener.socket.getsockname()
        print(f"serving on {address}:{port}")
        await talk(port)
        await service.scheduler.drain()  # nothing is left to wait for
        counts = service.scheduler.statistics()
        print(f"reminders sent: {counts.done}, cancelled: {counts.cancelled}")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
