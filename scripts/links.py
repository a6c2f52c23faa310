"""Links between the members of a cluster that are long, lossy or cut: a small TCP proxy in front of each member.

No script of its own. All members call one address of each, so a proxy tells callers apart: by the process that owns the calling
socket, or by the address it calls from. A lost packet is a stall of its connection and all that is behind it, as TCP makes
it one. No limit of bandwidth.
"""

import asyncio
import contextlib
import os
import random
import threading
from pathlib import Path

CHUNK_BYTES = 64 << 10
# How much of one connection may be under way in one direction: as much as a fast long link holds.
CHUNKS_MAX = 256
# What a lost packet costs: the sender's patience before it sends it again (Linux: 200 ms at least), and a round trip.
RESEND_SECONDS = 0.2


class Links:
    """Delays, losses and cuts between places; a place is a data centre. Proxies run on a thread of their own."""

    def __init__(self, delays, jitter_seconds=0.0, loss=0.0):
        self.delays = delays  # one way in seconds, by (place, place)
        self.jitter_seconds = jitter_seconds
        self.loss = loss
        self.cuts = set()  # (from, to)
        self.loop = asyncio.new_event_loop()
        # Connections that break in the middle of anything are what this is for; nobody waits to hear of each.
        self.loop.set_exception_handler(lambda *_: None)
        self.changed = None
        self.servers = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.changed = asyncio.Event()
        self.loop.run_forever()

    def close(self):
        """Ends all proxies with their connections."""
        async def end():
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            self.loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(end(), self.loop).result(timeout=10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def serve(self, listen, target, place, caller_of):
        """Takes connections at `listen` (host, port) for a member at `target` that stands in `place`."""
        async def begin():
            async def connected(reader, writer):
                await self._relay(reader, writer, target, place, caller_of)
            return await asyncio.start_server(connected, *listen, limit=CHUNK_BYTES)
        self.servers.append(asyncio.run_coroutine_threadsafe(begin(), self.loop).result(timeout=10))

    def cut(self, one, other):
        """Nothing gets through from `one` to `other`; what is sent waits."""
        self._change(lambda: self.cuts.add((one, other)))

    def mend(self, one, other):
        """What waits from `one` to `other` goes on."""
        self._change(lambda: self.cuts.discard((one, other)))

    def heal(self):
        self._change(self.cuts.clear)

    def _change(self, what):
        def change():
            what()
            self.changed.set()
            self.changed = asyncio.Event()
        self.loop.call_soon_threadsafe(change)

    async def _relay(self, reader, writer, target, place, caller_of):
        with contextlib.ExitStack() as stack:
            stack.callback(writer.close)
            caller = await self.loop.run_in_executor(None, caller_of, writer.get_extra_info("peername"),
                                                     writer.get_extra_info("sockname"))
            if caller is None:
                return
            # A connection takes a round trip, and can be made only where both directions work.
            await self._whole(caller, place)
            await self._whole(place, caller)
            await asyncio.sleep(self.delays[caller, place] + self.delays[place, caller])
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(*target, limit=CHUNK_BYTES)
                stack.callback(far_writer.close)
                pumps = [asyncio.ensure_future(self._pump(reader, far_writer, caller, place)),
                         asyncio.ensure_future(self._pump(far_reader, writer, place, caller))]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _whole(self, one, other):
        while (one, other) in self.cuts:
            await self.changed.wait()

    async def _pump(self, reader, writer, one, other):
        queue = asyncio.Queue(CHUNKS_MAX)

        async def read():
            while chunk := await reader.read(CHUNK_BYTES):
                delay = self.delays[one, other]
                delay += random.uniform(0, self.jitter_seconds) if delay else 0
                if delay and random.random() < self.loss:
                    delay += RESEND_SECONDS + 2 * delay
                await queue.put((self.loop.time() + delay, chunk))
            await queue.put((0, b""))

        reading = asyncio.ensure_future(read())
        try:
            while True:
                due, chunk = await queue.get()
                if not chunk:
                    return
                await asyncio.sleep(max(0, due - self.loop.time()))
                await self._whole(one, other)
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return
        finally:
            reading.cancel()


def caller_by_process(places):
    """Tells callers apart by their processes: `places()` gives the place of each process id."""
    def caller_of(peer, local):
        ends = f":{peer[1]:04X}", f":{local[1]:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
                wanted = f"socket:[{fields[9]}]"
                for pid, place in places().items():
                    with contextlib.suppress(OSError):
                        for file in os.listdir(f"/proc/{pid}/fd"):
                            with contextlib.suppress(OSError):
                                if os.readlink(f"/proc/{pid}/fd/{file}") == wanted:
                                    return place
        return None
    return caller_of
