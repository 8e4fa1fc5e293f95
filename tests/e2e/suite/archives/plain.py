"""Says which manifest it was started with."""


def handle(data, context):
    if data is None:
        return None
    model = context.manifest.get("model", {})
    return [{"version": model.get("modelVersion"), "handler": model.get("handler"), "name": context.model_name}] * len(
        data
    )
