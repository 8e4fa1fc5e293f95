"""The chapters of the conversation that are about registering (contract sections 2.2 and 2.3)."""

import json
from typing import Any

from tests.e2e.conversation import (
    IN_BACKGROUND,
    MISSING_M,
    Step,
    begins,
    described,
    done,
    gone,
    matches,
    refuses,
    registered,
    says,
)


def as_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


# The defaults of a registration, and every answer that one may get (contract sections 2.2 and 2.3).
REGISTER = [
    done(200, "POST /models?url=m.mar", registered("m")),
    says(200, "GET /models/m", [described("m")]),
    says(200, "GET /v1/models/m", {"name": "m", "ready": False}),
    refuses(
        409, "POST /models?url=m.mar", "ConflictStatusException", "Model version 1.0 is already registered for model m"
    ),
    gone("m"),
    MISSING_M,
    done(200, "POST /models?url=m.mar&initial_workers=1", registered("m", workers=1)),
    says(200, "GET /models/m", [described("m", workers=1)]),
    says(200, "GET /v1/models/m", {"name": "m", "ready": True}),
    gone("m"),
    done(202, "POST /models?url=m.mar&initial_workers=1&synchronous=false", IN_BACKGROUND),
    says(200, "GET /models/m", [described("m", workers=1)], until=True),
    gone("m"),
    done(202, "POST /models?url=m.mar&initial_workers=1&synchronous=yes", IN_BACKGROUND),
    gone("m"),
    done(200, "POST /models?url=m.mar&initial_workers=1&synchronous=TRUE", registered("m", workers=1)),
    gone("m"),
    done(200, "POST /models?url=m.mar&synchronous=false", registered("m")),
    gone("m"),
    done(200, "POST /models?url=m.mar&initial_workers=-3", registered("m")),
    gone("m"),
    done(
        200,
        "POST /models?url=/any/where/m.mar&model_name=other%20name&batch_size=4&max_batch_delay=50&response_timeout=9"
        "&startup_timeout=8&runtime=python3&handler=plain.py:handle&unknown=x",
        registered("other name"),
    ),
    says(
        200,
        "GET /models/other%20name",
        [
            described(
                "other name",
                modelUrl="/any/where/m.mar",
                batchSize=4,
                maxBatchDelay=50,
                responseTimeout=9,
                startupTimeout=8,
                runtime=matches("python3?"),
            )
        ],
    ),
    done(200, "DELETE /models/other%20name", 'Model "other name" unregistered'),
    done(
        200,
        "POST /models?url=m.mar&batch_size=x&max_batch_delay=1.5&response_timeout=&initial_workers=no",
        registered("m"),
    ),
    says(200, "GET /models/m", [described("m")]),
    gone("m"),
    done(200, "POST /models?url=m.mar&s3_sse_kms=true&response_timeout=0", registered("m")),
    says(200, "GET /models/m", [described("m", responseTimeout=0)]),
    gone("m"),
    done(200, "POST /models?url=no-version.mar", registered("odd")),
    gone("odd"),
    done(200, "POST /models?url=no-name.mar&model_name=named", registered("named")),
    gone("named"),
    done(200, "POST /models?url=unpacked", registered("unpacked")),
    gone("unpacked"),
]

SOURCES = [
    refuses(400, "POST /models", "BadRequestException", "Parameter url is required."),
    refuses(400, "POST /models?model_name=m", "BadRequestException", "Parameter url is required."),
    refuses(404, "POST /models?url=", "ModelNotFoundException", "empty url"),
    refuses(404, "POST /models?url=none.mar", "ModelNotFoundException", "Model not found at: none.mar"),
    refuses(
        404,
        "POST /models?url=ftp://x/none.mar",
        "ModelNotFoundException",
        begins("Model not found at: ftp://x/none.mar"),
    ),
    *(
        refuses(404, f"POST /models?url={url}", "ModelNotFoundException", f"Relative path is not allowed in url: {url}")
        for url in ("../m.mar", "a/../m.mar", "..", "m..mar")
    ),
    *(
        refuses(
            404,
            f"POST /models?url={url}",
            "ModelNotFoundException",
            f"Given URL {url} does not match any allowed URL(s)",
        )
        for url in ("http://127.0.0.1:9/m.mar", "https://example.com/m.mar", "file:///etc/passwd", "HTTP://x/y.mar")
    ),
    *(
        refuses(
            400, f"POST /models?url=m.mar&runtime={word}", "BadRequestException", f"Invalid RuntimeType value: {word}"
        )
        for word in ("PYTHON", "Python3", "lsp", "java")
    ),
    refuses(400, "POST /models?url=no-json.mar", "InvalidModelException", begins("Failed to parse signature.json.")),
    refuses(400, "POST /models?url=no-model.mar", "InvalidModelException", "Missing Model entry in manifest file."),
    refuses(400, "POST /models?url=no-name.mar", "InvalidModelException", "Model name is not defined."),
    refuses(400, "POST /models?url=empty-version.mar", "InvalidModelException", "Model version is not defined."),
    refuses(
        400, "POST /models?url=odd-runtime.mar", "InvalidModelException", begins("Runtime is not defined or invalid.")
    ),
    refuses(
        400,
        "POST /models?url=no-archive.mar",
        "InvalidModelException",
        begins("Archive no-archive.mar: expected a zip archive"),
    ),
    refuses(
        500,
        "POST /models?url=fails.mar&initial_workers=1",
        "InternalServerException",
        begins("Failed to start workers for model fails version: 1.0"),
    ),
    refuses(404, "GET /models/fails", "ModelNotFoundException", "Model not found: fails"),
    refuses(
        500,
        "POST /models?url=m.mar&initial_workers=1&startup_timeout=0",
        "InternalServerException",
        begins("Failed to start workers for model m version: 1.0"),
    ),
    MISSING_M,
    says(200, "GET /models", {"models": []}),
]

# A body takes the place of the query, and its parser forgives.
BODIES = [
    done(200, "POST /models", registered("m"), body=as_json(url="m.mar")),
    says(200, "GET /models/m", [described("m")]),
    gone("m"),
    done(
        200,
        "POST /models?url=none.mar&model_name=ignored",
        registered("n"),
        body=as_json(
            url="m.mar", model_name="n", batch_size="6", max_batch_delay=5, synchronous="true", unknown={"a": 1}
        ),
    ),
    says(200, "GET /models/n", [described("n", batchSize=6, maxBatchDelay=5)]),
    gone("n"),
    done(200, "POST /models", registered("m"), body=b"{'url': 'm.mar', 'batch_size': '2'}"),
    says(200, "GET /models/m", [described("m", batchSize=2)]),
    gone("m"),
    done(202, "POST /models", IN_BACKGROUND, body=as_json(url="m.mar", initial_workers=1, synchronous="false")),
    gone("m"),
    done(
        202,
        "POST /models",
        IN_BACKGROUND,
        body=as_json(url="m.mar", initial_workers=1, synchronous=False),
        content_type="application/json; charset=utf-8",
    ),
    gone("m"),
    done(200, "POST /models", registered("m"), body=as_json(url="m.mar", model_name=None, batch_size=None)),
    gone("m"),
    refuses(400, "POST /models", "BadRequestException", "Parameter url is required.", body=b"{}"),
    refuses(400, "POST /models?url=m.mar", "BadRequestException", "Parameter url is required.", body=b"{}"),
    refuses(
        400, "POST /models", "BadRequestException", begins("Body: expected a JSON object"), body=b'{"url": "m.mar"'
    ),
    refuses(400, "POST /models", "BadRequestException", begins("Body: expected a JSON object"), body=b"[1]"),
    refuses(400, "POST /models", "BadRequestException", begins("Body: expected a JSON object"), body=b"\xff\xfe"),
    refuses(404, "POST /models", "ModelNotFoundException", "empty url", body=as_json(url="")),
    refuses(
        400,
        "POST /models",
        "BadRequestException",
        "Parameter url is required.",
        body=b"url=m.mar",
        content_type="application/x-www-form-urlencoded",
    ),
    done(200, "POST /models?url=m.mar", registered("m"), body=b"not looked at", content_type="text/plain"),
    done(202, "PUT /models/m?min_worker=9", IN_BACKGROUND, body=as_json(min_worker=0, max_worker="0")),
    says(200, "GET /models/m", [described("m")]),
    gone("m"),
    MISSING_M,
]


def ranged(**more: Any) -> Step:
    """Its workers and timeouts are those of its configuration, whatever was asked for."""
    configured: dict[str, Any] = {"maxWorkers": 2, "responseTimeout": 21, "startupTimeout": 22}
    return says(
        200, "GET /models/ranged", [described("ranged", workers=1, modelUrl="ranged.mar", **configured, **more)]
    )


# What the model's own configuration says wins over the parameters (contract sections 2.2 and 9.4).
CONFIGURED = [
    done(200, "POST /models?url=ranged.mar&initial_workers=5", registered("ranged", workers=1)),
    ranged(batchSize=3, maxBatchDelay=7),
    gone("ranged"),
    done(
        200,
        "POST /models?url=ranged.mar&batch_size=5&max_batch_delay=9&response_timeout=1&startup_timeout=19",
        registered("ranged", workers=1),
    ),
    ranged(batchSize=5, maxBatchDelay=9),
    gone("ranged"),
]
