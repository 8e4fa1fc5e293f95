"""What English contractions stand for, as TorchServe's text handlers have it, its slips included: a model is asked about the
words that it has always been asked about.

`CONTRACTION_MAP` has the same 123 entries as `ts.torch_handler.contractions` of TorchServe 0.12. Most follow from the word and
its ending; the others are listed.
"""

_ENDINGS = {
    "n't": " not",
    "n't've": " not have",
    "'d": " would",
    "'d've": " would have",
    "'ll": " will",
    "'ll've": " will have",
    "'m": " am",
    "'re": " are",
    "'s": " is",
    "'ve": " have",
}
_WORDS_BY_ENDINGS = {
    "n't": "are did does do has have is may was were",
    "n't n't've": "had need ought",
    "'ve n't n't've": "could might must should would",
    "'ve": "so to will",
    "'s 've": "when where why",
    "'ll 's": "how",
    "'ll 'll've 's 've": "who",
    "'ll 'll've 're 's 've": "what",
    "'d 'd've 's": "that there",
    "'d 'd've 'll 's": "he",
    "'d 'd've 'll 'll've 's": "it she",
    "'d 'd've 'll 'll've 'm 've": "I i",
    "'d 'd've 'll 'll've 're 've": "they we you",
}
_IRREGULAR = {
    "ain't": "is not",
    "can't": "cannot",
    "can't've": "cannot have",
    "'cause": "because",
    "he'll've": "he he will have",
    "how'd": "how did",
    "how'd'y": "how do you",
    "let's": "let us",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "shan't": "shall not",
    "sha'n't": "shall not",
    "shan't've": "shall not have",
    "so's": "so as",
    "where'd": "where did",
    "won't": "will not",
    "won't've": "will not have",
    "y'all": "you all",
    "y'all'd": "you all would",
    "y'all'd've": "you all would have",
    "y'all're": "you all are",
    "y'all've": "you all have",
}

CONTRACTION_MAP = {
    word + ending: word + _ENDINGS[ending]
    for endings, words in _WORDS_BY_ENDINGS.items()
    for word in words.split()
    for ending in endings.split()
} | _IRREGULAR
