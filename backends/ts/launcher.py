"""`ts.launcher` starts servers, which a handler has no need for: in a worker it says so instead."""

raise ImportError(
    "ts.launcher starts a server, and this process is a worker of one. Programs that start servers import"
    " ringserve.server.launcher, which has the same functions."
)
