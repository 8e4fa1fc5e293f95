"""Everything that model-config.yaml says reaches the handler as it stands there."""


def handle(data, context):
    if data is None:
        return None
    config = context.model_yaml_config
    return [
        {
            "threshold": config["handler"]["threshold"],
            "labels": config["handler"]["labels"],
            "nested": config["mine"]["deep"]["deeper"],
            "batchSize": config["batchSize"],
            "missing": config.get("missing", "a default"),
        }
        for _ in data
    ]
