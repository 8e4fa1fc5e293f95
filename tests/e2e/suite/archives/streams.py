"""Answers in parts with TorchServe's function, in both of the places where handlers find it; may fail after the first."""

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.protocol.otf_message_handler import send_intermediate_predict_response as of_protocol


def handle(data, context):
    if data is None:
        return None
    words = [bytes(row["body"]).decode() for row in data]
    rows = range(len(words))
    if words[0] == "whole":
        return words
    send_intermediate_predict_response(
        [f"{word}:first;" for word in words], context.request_ids, "Intermediate Prediction success", 200, context
    )
    if "fail" in words:
        raise RuntimeError("after the first part")
    for number in range(3):
        of_protocol(
            [{"row": row, "part": number} for row in rows],
            context.request_ids,
            "Intermediate Prediction success",
            200,
            context,
        )
    return [f"{word}:last" for word in words]
