"""A function with a name of its own; the classes beside it are its helpers."""


class Tokenizer:
    def split(self, text):
        return text.split()


class Vocabulary:
    words = {"a": 1, "b": 2}


tokenizer = Tokenizer()


def predict_tokens(data, context):
    if not data:
        return None
    texts = [row["body"].decode("utf-8") for row in data]
    return [[Vocabulary.words.get(word, 0) for word in tokenizer.split(text)] for text in texts]


def handle(data, context):
    raise RuntimeError("the manifest names another function")
