"""The oldest style: one object in the module, made ready by the first call, whichever that is."""

import json
import os


class WordCounter(object):
    def __init__(self):
        self.initialized = False
        self.stop_words = None

    def initialize(self, context):
        properties = context.system_properties
        with open(os.path.join(properties.get("model_dir"), "stop_words.json")) as f:
            self.stop_words = set(json.load(f))
        self.initialized = True

    def preprocess(self, data):
        texts = []
        for row in data:
            text = row.get("data") or row.get("body")
            if isinstance(text, (bytes, bytearray)):
                text = text.decode("utf-8")
            texts.append(text)
        return texts

    def inference(self, texts):
        return [len([word for word in text.split() if word not in self.stop_words]) for text in texts]

    def postprocess(self, counts):
        return [{"words": count} for count in counts]


_service = WordCounter()


def handle(data, context):
    if not _service.initialized:
        _service.initialize(context)

    if data is None:
        return None

    return _service.postprocess(_service.inference(_service.preprocess(data)))
