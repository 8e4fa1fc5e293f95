"""Streams to each client its own parts, as its body, a JSON object, orders.

name, parts, size    part i is the text `name.i;`, filled up to `size`
way                  "yield" (the default), "send" (by TorchServe's function), "return" (no stream at all)
folder               where files tell what happened: `made` counts parts, `closed` is there when the generator was closed
gated                part i is not made before the folder has a file `open-i`
fail_at, die_at      the number of the part instead of which the model raises, or its process ends
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ts.handler_utils.utils import send_intermediate_predict_response

HOLD_S_MAX = 30.0

Parts = list[str | None]


class Stream:
    def handle(self, data: list[dict[str, Any]], context: Any) -> Any:
        orders = [row["body"] for row in data]
        for index, order in enumerate(orders):
            context.set_response_header(index, "x-rows", len(orders))
            if "status" in order:
                context.set_response_status(order["status"], order.get("phrase", ""), index)
        way = orders[0].get("way", "yield")
        if way == "yield":
            return self._yielded(orders)
        parts = list(_parts(orders))
        if way == "send":
            for each in parts:
                send_intermediate_predict_response(each, context.request_ids, "Intermediate Prediction", 200, context)
        return ["end"] * len(orders)

    def _yielded(self, orders: list[dict[str, Any]]) -> Iterator[Parts]:
        try:
            yield from _parts(orders)
        except GeneratorExit:
            for order in orders:
                if "folder" in order:
                    (Path(order["folder"]) / "closed").touch()
            raise


def _parts(orders: list[dict[str, Any]]) -> Iterator[Parts]:
    for number in range(max(order["parts"] for order in orders)):
        yield [_part(order, number) if number < order["parts"] else None for order in orders]


def _part(order: dict[str, Any], number: int) -> str:
    if order.get("gated"):
        end = time.monotonic() + HOLD_S_MAX
        while not (Path(order["folder"]) / f"open-{number}").exists() and time.monotonic() < end:
            time.sleep(0.005)
    if order.get("fail_at") == number:
        raise ValueError("as ordered")
    if order.get("die_at") == number:
        os.kill(os.getpid(), signal.SIGKILL)
    if "folder" in order:
        (Path(order["folder"]) / "made").write_text(str(number + 1))
    return f"{order['name']}.{number};".ljust(order.get("size", 0))
