"""Starts what models start: threads, forked and spawned children, other programs, an event loop."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import queue
import subprocess
import sys
import threading


def double(number):
    return number * 2


class Busy:
    def initialize(self, context):
        self.pool = concurrent.futures.ThreadPoolExecutor(2)
        self.jobs, self.done = queue.Queue(), queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            self.done.put(self.jobs.get() * 2)

    def handle(self, data, context):
        return [getattr(self, bytes(row["body"]).decode())() for row in data]

    def thread(self):
        self.jobs.put(21)
        return self.done.get(timeout=10)

    def executor(self):
        return list(self.pool.map(double, [1, 2, 3]))

    def fork(self):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"from the child")
            os._exit(0)
        os.waitpid(pid, 0)
        return os.read(reader, 100).decode()

    def process(self):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.map(double, [4, 5])

    def spawn(self):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.map(double, [6])

    def program(self):
        code = "import helpers_of_its_own; print(helpers_of_its_own.double(8))"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20).stdout.strip()

    def loop(self):
        async def answer():
            await asyncio.sleep(0)
            return "from a coroutine"

        return asyncio.run(answer())
