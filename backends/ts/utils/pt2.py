"""The `pt2` section of a model-config.yaml: whether and how a model is compiled.

pt2: {compile: {enable: true, backend: inductor, mode: reduce-overhead}}    keywords of torch.compile
pt2: {export: {aot_compile: true}}                                          the serializedFile is an AOTInductor .so
pt2: inductor            pt2: {backend: inductor}                           older forms of the first
"""

from typing import Any

from ringserve.backends.ts.utils.util import check_valid_pt2_backend


def compile_options(config: dict[str, Any]) -> dict[str, Any] | None:
    """The keywords for `torch.compile`, None when the model is to stay as it is: also, with a warning, for a backend that
    is none. Raises TypeError for a section that has none of the forms."""
    section = config.get("pt2")
    if section is None:
        return None
    if isinstance(section, str):
        options: dict[str, Any] = {"backend": section}
    elif not isinstance(section, dict):
        raise TypeError(f"pt2 in model-config.yaml should be a map or the name of a compiler, got {section!r}.")
    elif "compile" in section:
        options = _of_compile(section["compile"])
    elif "export" in section:
        return None
    else:
        options = dict(section)
    if options.pop("enable", True) is not True:
        return None
    if "backend" in options and not check_valid_pt2_backend(options["backend"]):
        return None
    return options


def _of_compile(wanted: object) -> dict[str, Any]:
    if not isinstance(wanted, dict):
        raise TypeError(f"pt2.compile in model-config.yaml should be a map with enable: true, got {wanted!r}.")
    return {"enable": False, **wanted}


def wants_aot_compiled(config: dict[str, Any]) -> bool:
    """Whether the archive's .so was made by `torch.export` and AOTInductor."""
    section = config.get("pt2")
    export = section.get("export") if isinstance(section, dict) else None
    return isinstance(export, dict) and bool(export.get("aot_compile"))
