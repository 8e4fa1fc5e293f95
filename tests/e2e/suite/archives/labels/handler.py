"""The helpers of ts.utils.util, and labels from index_to_name.json."""

import os

from ts.utils.util import list_classes_from_module, load_label_mapping, map_class_to_label


class Labels:
    def initialize(self, context):
        import sys

        path = os.path.join(context.system_properties["model_dir"], "index_to_name.json")
        self.mapping = load_label_mapping(path)
        self.classes = [each.__name__ for each in list_classes_from_module(sys.modules[__name__])]

    def handle(self, data, context):
        return [{"labels": map_class_to_label([[0.75, 0.25]], self.mapping)[0], "classes": self.classes}] * len(data)
