"""From what a handler returns, and says on its context, to the answer (contract 1.4, 10.2)."""

from collections.abc import Iterator

from tests.e2e.inference.talk import Ask, Peer, Step

DOES = "POST /predictions/does"
VALUES = (
    "'text'",
    "''",
    "'gr\\u00fc\\u00dfe \\u20ac \\U0001f600'",
    "b'bytes'",
    "b''",
    "bytes(range(256))",
    "bytearray(b'array')",
    "None",
    "True",
    "0",
    "-1",
    "10 ** 30",
    "1.0",
    "0.1",
    "1e-7",
    "1e16",
    "123456789.123456789",
    "1e300 * 10",
    "float('nan')",
    "-float('inf')",
    "-0.0",
    "[]",
    "{}",
    "()",
    "[[]]",
    "[1, 2.5, 'x', None, True]",
    "(1, (2, 3))",
    "[0.1, 0.00001, 1e22, 3.0]",
    "[float('nan'), 1.0]",
    "[[0.5, 1.5], [2.0, 1e-5]]",
    "{'a': 1, 'b': [1, 2], 'c': {'d': {}}}",
    "{1: 'a', 2.5: 'b', True: 'c', None: 'd'}",
    "{'\\u00e9': '\\u20ac', '\"': '\\\\ / \\n \\t \\x00 \\x7f'}",
    "['<b>&amp;</b>', \"'\"]",
    "{'a': float('inf')}",
    "[{'label': 'cat', 'p': 0.9}, {'label': 'dog', 'p': 0.1}]",
    "'x' * 20",
    "__import__('collections').OrderedDict(b=1, a=2)",
    "__import__('collections').namedtuple('N', 'a b')(1, 2)",
    "__import__('enum').IntEnum('E', 'a b').b",
)
UNFIT = (
    "{1, 2}",
    "object()",
    "{'a': b'x'}",
    "[b'x']",
    "{(1, 2): 3}",
    "1j",
    "range(3)",
    "__import__('datetime').date(2024, 1, 2)",
    "__import__('numpy').float32(1.5)",
    "__import__('numpy').float64(1.5)",
    "__import__('numpy').arange(3)",
    "memoryview(b'abc')",
    "Exception('x')",
    "(x for x in [1])",
)
TENSORS = (
    "torch.tensor([1.0, 2.0])",
    "torch.tensor(7)",
    "torch.arange(6).reshape(2, 3)[1]",
    "torch.tensor([True])",
    "[torch.tensor(1.0)]",
)
LISTS = (  # what takes the place of all rows' answers
    "[b'x']",
    "['a', 'b']",
    "[]",
    "None",
    "'text'",
    "('a',)",
    "{'a': 1}",
    "7",
    "(x for x in ['a'])",
    "__import__('numpy').zeros(1)",
    "{0: 'a'}",
)
SETTINGS = (
    "context.set_response_content_type(0, 'text/css')",
    "context.set_response_content_type(0, '')",
    "context.set_response_header(0, 'content-type', 'image/png')",
    "context.set_response_header(0, 'Content-Type', 'image/png')",
    "context.set_response_header(0, 'x-a', 'b')",
    "context.set_response_header(0, 'X-Odd-Case', 'b'); context.set_response_header(0, 'x-empty', '')",
    "context.set_response_header(0, 'x-a', '1'); context.set_response_header(0, 'x-a', '2')",
    "context.set_response_header(0, 'x-a', 'gr\\u00fc\\u00dfe')",
    "context.set_response_header(0, 'cache-control', 'max-age=5')",
    "context.set_response_header(0, 'x-request-id', 'mine')",
    "context.set_response_header(0, 'set-cookie', 'a=b')",
    "context.set_response_header(0, 'access-control-allow-origin', '*')",
    "context.set_response_header(0, 'connection', 'close')",
    "context.set_response_header(0, 'content-length', '3')",
    "context.set_response_header(0, 'location', '/x'); context.set_response_status(302, 'Found')",
    "context.set_response_header(0, 'ts_request_sequence_id', 's')",
    "context.set_response_status(201)",
    "context.set_response_status(201, 'Made', 0)",
    "context.set_response_status(204)",
    "context.set_response_status(304, 'Not Modified')",
    "context.set_response_status(400, 'No')",
    "context.set_response_status(404, idx=0)",
    "context.set_response_status(418, 'teapot')",
    "context.set_response_status(429, 'Slow down')",
    "context.set_response_status(500, 'Broken')",
    "context.set_response_status(503)",
    "context.set_response_status(599, 'Odd')",
    "context.set_response_status(code=202, phrase='Later')",
    "context.set_all_response_status(206, 'Part')",
    "context.set_all_response_status()",
    "context.set_response_status(201, None)",
    "context.set_response_status(200, 'two words')",
    "context.set_response_status(418); answer = {'error': 'x'}",
    "context.set_response_status(500); context.set_response_content_type(0, 'text/plain'); answer = 'sorry'",
    "context.set_response_status(418); context.set_response_status(200)",
    "context.set_response_status(201, idx=7)",
    "context.set_response_header(7, 'x', 'y')",
)
CONTEXT = (
    "context.model_name",
    "sorted(context.system_properties)",
    "{k: context.system_properties[k] for k in ('gpu_id', 'batch_size', 'server_name', 'limit_max_image_pixels')}",
    "__import__('os').path.samefile(context.system_properties['model_dir'], '.')",
    "sorted(context.manifest)",
    "{k: v for k, v in sorted(context.manifest['model'].items())}",
    "context.model_yaml_config",
    "context.request_ids == {0: context.get_request_id()}",
    "context.get_request_id(0) == context.get_request_id(), context.get_request_id(1), len(context.get_request_id())",
    "context.get_request_header(0, 'host'), context.get_request_header(0, 'none')",
    "context.get_request_header(0, 'body')",
    "type(context.get_all_request_header(0)).__mro__[-2].__name__",
    "len(context.request_processor), type(context.request_processor[0]).__name__",
    "context.request_processor[0].get_request_property('explain')",
    "sorted(context.request_processor[0].get_request_properties())",
    "context.get_response_content_type(0), context.get_response_headers(0), context.get_response_status(0)",
    "context.set_response_status(201, 'Made'), context.get_response_status(0)",
    "context.set_response_content_type(0, 'a/b'), context.get_response_content_type(0), context.get_response_headers(0)",
    "context.set_response_header(0, 'a', 'b'), context.get_response_headers(0)",
    "context.request_processor[0].add_response_property('x-b', 'c'), context.request_processor[0].get_response_headers()",
    "context.request_processor[0].get_response_header('x'), context.request_processor[0].get_response_status_phrase()",
    "context.request_processor[0].report_status(203, 'So'), context.request_processor[0].get_response_status_code()",
    "context.get_sequence_id(0)",
    "context.header_key_sequence_id, context.header_key_sequence_start, context.header_key_sequence_end",
    "context.stopping_criteria",
    "type(context.metrics).__name__",
    "[name for name in dir(context) if not name.startswith('_') and name not in ('cancelled', 'control', 'begin_batch')]",
    "[name for name in dir(context.request_processor[0]) if not name.startswith('_') and name != 'untouched']",
    "setattr(context, 'remembered', getattr(context, 'remembered', 0) + 1), context.remembered",
    "context.remembered",
    "__import__('os').getcwd() == context.system_properties['model_dir']",
    "__import__('ts').__version__",
    "type(context).__name__, isinstance(context, __import__('ts.context').context.Context)",
    "context == context, isinstance(repr(context), str)",
    "context.get_request_header(1, 'host')",
    "{k: v for k, v in __import__('os').environ.items() if k == 'TS_DECODE_INPUT_REQUEST'}",
)


def does(code: str, model: str = "does", first: str = "") -> Ask:
    """One row runs `first`, which the label does not say, and `code`."""
    return Ask(f"POST /predictions/{model}", (first + code).encode(), note=f": {code}")


def answers(peer: Peer) -> Iterator[Step]:
    yield from peer.say(*(does(f"answer = {value}") for value in (*VALUES, *UNFIT)))
    yield from peer.say(*(does(f"import torch; answer = {value}", "tensors") for value in TENSORS))
    yield from peer.say(*(does(f"answers = {value}") for value in LISTS))
    yield from peer.say(*(does(code) for code in SETTINGS))
    yield from peer.say(Ask("HEAD /predictions/does", b"answer = 'text'", note="with a body"))


def context(peer: Peer) -> Iterator[Step]:
    yield from peer.say(*(does(f"answer = {value}") for value in CONTEXT))
