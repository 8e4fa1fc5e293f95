"""The place from which older handlers import `send_intermediate_predict_response`."""

from ringserve.backends.ts.handler_utils.utils import send_intermediate_predict_response

__all__ = ["send_intermediate_predict_response"]
