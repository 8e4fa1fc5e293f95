"""A class with initialize and handle; what it imports does not count as a second one."""

import logging
from collections import OrderedDict
from pathlib import Path

logger = logging.getLogger(__name__)


class Doubler:
    def __init__(self):
        self.factor = None
        self.loaded = 0

    def initialize(self, context):
        self.loaded += 1
        self.factor = 2
        self.seen = OrderedDict()
        assert Path(context.system_properties["model_dir"]).is_dir()
        logger.info("loaded %s", context.model_name)

    def handle(self, data, context):
        numbers = [row["body"]["number"] for row in data]
        return [{"doubled": number * self.factor, "loaded": self.loaded} for number in numbers]
