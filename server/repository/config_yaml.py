"""Reads one YAML mapping from an untrusted file.

YAML can name a value once and repeat it by alias: a few lines may stand for billions of values, or for one that holds
itself. So the size the document would have written out is counted on its node graph before anything is built from it.
What no message to a worker can carry is refused here too: endless numbers (which Python cannot even print), and text that
UTF-8 does not have.
"""

from pathlib import Path
from typing import Any

import yaml

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.files import open_regular

FILE_BYTES_MAX = 256 << 10
VALUES_MAX = 100_000
INTEGER_CHARS_MAX = 80  # 64 bits in binary, with underscores
INTEGERS = range(-(2**63), 2**64)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in `path`; an empty file is an empty one. Raises `InvalidModel` with the line of the mistake."""
    try:
        with open_regular(path) as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {error.strerror}") from error
    if len(text) > FILE_BYTES_MAX:
        raise InvalidModel(f"{path.name}: expected at most {FILE_BYTES_MAX} bytes, got more")
    return parse_mapping(text, path.name)


def parse_mapping(text: bytes, name: str) -> dict[str, Any]:
    """The mapping that is the text of `name`, bounded as files are. Raises `InvalidModel` with the line of the mistake."""
    try:
        return _parse(text, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InvalidModel(f"{name}{line}: expected YAML, got an error: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        number = text.count(b"\n", 0, error.position) + 1
        raise InvalidModel(f"{name}, line {number}: expected YAML text, got {error.reason}") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        raise InvalidModel(f"{name}: expected YAML, got an error: {error}") from error
    except RecursionError as error:
        raise InvalidModel(f"{name}: expected YAML of moderate depth, got too many nested values") from error


class _Loader(yaml.SafeLoader):
    """YAML's own values, as far as everybody who is given them can hold them."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(node.value)
        if len(text) <= INTEGER_CHARS_MAX:
            value: int = super().construct_yaml_int(node)
            if value in INTEGERS:
                return value
        raise yaml.constructor.ConstructorError(
            None, None, f"expected whole numbers of 64 bits, got {text[:40]!r}", node.start_mark
        )

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """JSON writes what is beyond 16 bits as two escapes; one of them alone means nothing."""
        text = str(super().construct_yaml_str(node))
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise yaml.constructor.ConstructorError(
                None, None, f"expected text in UTF-8, got {text[:40]!r}", node.start_mark
            ) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


def _parse(text: bytes, file_name: str) -> dict[str, Any]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}
        line = root.start_mark.line + 1
        if not isinstance(root, yaml.MappingNode):
            got = "a list" if isinstance(root, yaml.SequenceNode) else f"{root.value!r:.100}"
            raise InvalidModel(f"{file_name}, line {line}: expected a mapping of keys to values, got {got}")
        if _written_out(root, {}, file_name) > VALUES_MAX:
            raise InvalidModel(f"{file_name}, line {line}: expected at most {VALUES_MAX} values, got more")
        value: dict[str, Any] = loader.construct_document(root)
        return value
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, sizes: dict[int, int | None], file_name: str) -> int:
    """How many values `node` stands for with all aliases written out. `sizes` remembers nodes, None while inside one."""
    known = sizes.get(id(node), -1)
    if known is None:
        line = node.start_mark.line + 1
        raise InvalidModel(f"{file_name}, line {line}: expected a value that ends, got one that holds itself")
    if known >= 0:
        return known
    sizes[id(node)] = None
    total = 1
    if isinstance(node, yaml.SequenceNode):
        total += sum(_written_out(child, sizes, file_name) for child in node.value)
    elif isinstance(node, yaml.MappingNode):
        total += sum(_written_out(child, sizes, file_name) for pair in node.value for child in pair)
    sizes[id(node)] = total
    return total
