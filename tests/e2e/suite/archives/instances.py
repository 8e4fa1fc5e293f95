"""Is given instances by its envelope: doubles numbers, and says what else it got."""


def doubled(instance):
    if isinstance(instance, list):
        return [doubled(each) for each in instance]
    return instance * 2 if isinstance(instance, (int, float)) else f"{type(instance).__name__} {instance!r}"


def handle(data, context):
    if data is None:
        return None
    return [doubled(each) for each in data]
