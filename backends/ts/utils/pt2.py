"""The `pt2` section of a model-config.yaml: whether and how a model is compiled.

pt2: {compile: {enable: true, backend: inductor, mode: reduce-overhead}}    keywords of torch.compile
pt2: {export: {aot_compile: true}}                                          the serializedFile is an AOTInductor .so
pt2: inductor            pt2: {backend: inductor}                           older forms of the first
"""

from typing import Any

from ringserve.backends.ts.utils.util import check_valid_pt2_backend


def compile_options(config: dict[str, Any]) -> dict[str, Any] | None:
    """The keywords for `torch.compile`, None when the model is to stay as it is."""
    section = config.get("pt2")
    if isinstance(section, str):
        options: dict[str, Any] = {"backend": section}
    elif not isinstance(section, dict) or not section:
        return None
    elif isinstance(section.get("compile"), dict):
        options = dict(section["compile"])
        if not options.pop("enable", False):
            return None
    elif "compile" in section or "export" in section:
        return None
    else:
        options = dict(section)
    if "backend" in options and not check_valid_pt2_backend(options["backend"]):
        return None
    return options


def wants_aot_compiled(config: dict[str, Any]) -> bool:
    """Whether the archive's .so was made by `torch.export` and AOTInductor."""
    section = config.get("pt2")
    export = section.get("export") if isinstance(section, dict) else None
    return isinstance(export, dict) and bool(export.get("aot_compile"))
