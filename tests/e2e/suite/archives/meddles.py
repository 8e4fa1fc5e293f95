"""Changes everything about its process that a library might, while it is loaded."""

import builtins
import gc
import json
import locale
import logging
import os
import random
import signal
import socket
import sys
import time
import warnings


class Meddles:
    def initialize(self, context):
        logging.disable(logging.CRITICAL)
        logging.getLogger().handlers.clear()
        warnings.simplefilter("error")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        socket.setdefaulttimeout(0.05)
        os.environ.clear()
        os.umask(0o777)
        sys.path.clear()
        sys.meta_path.clear()
        sys.stdout = open(os.devnull, "w")
        sys.stderr = sys.stdout
        sys.setrecursionlimit(200)
        sys.setswitchinterval(0.5)
        locale.setlocale(locale.LC_ALL, "C")
        random.seed(1)
        gc.disable()
        os.nice(1)
        time.sleep = lambda seconds: None
        json.dumps = lambda *args, **kwargs: "mine"
        builtins.print = lambda *args, **kwargs: None

    def handle(self, data, context):
        word = bytes(data[0]["body"]).decode()
        if word == "raise":
            raise ValueError("with nobody to log it")
        return ["still here"] * len(data)
