"""Asks for its configuration and has none; shows the rest of its context."""

import os


def handle(data, context):
    if data is None:
        return None
    properties = context.system_properties
    shown = {
        "config": context.model_yaml_config,
        "gpu_id": properties["gpu_id"],
        "batch_size": properties["batch_size"],
        "server_name": properties["server_name"],
        "limit_max_image_pixels": properties["limit_max_image_pixels"],
        "in_its_folder": os.path.samefile(properties["model_dir"], os.getcwd()),
        "model_name": context.model_name,
        "handler": context.manifest["model"]["handler"],
    }
    return [shown for _ in data]
