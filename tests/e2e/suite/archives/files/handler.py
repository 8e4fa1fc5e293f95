"""Reads what was packed with it: by model_dir, by its own place, by the working directory, through pkgutil; and from packed weights."""

import os
import pickle
import pkgutil


class Files:
    def initialize(self, context):
        model_dir = context.system_properties.get("model_dir")
        with open(os.path.join(model_dir, "labels.txt")) as f:
            self.by_model_dir = f.read().split()
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "labels.txt")) as f:
            self.by_its_place = f.read().split()
        with open("lists/inner.txt") as f:
            self.by_cwd = f.read().split()
        with open(os.path.join(model_dir, context.manifest["model"]["serializedFile"]), "rb") as f:
            self.weights = pickle.load(f)
        self.by_pkgutil = pkgutil.get_data(__name__, "labels.txt").decode().split()
        self.manifest_is_there = os.path.isfile(os.path.join(model_dir, "MAR-INF", "MANIFEST.json"))

    def handle(self, data, context):
        with open("labels.txt") as f:
            later = f.read().split()
        everything = [self.by_model_dir, self.by_its_place, self.by_cwd, self.by_pkgutil, later]
        return [{"labels": everything, "weights": self.weights, "manifest": self.manifest_is_there} for _ in data]
