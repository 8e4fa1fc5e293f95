"""Keeps files in its own folder, and changes into others."""

import os


class Writes:
    def initialize(self, context):
        self.folder = context.system_properties["model_dir"]
        with open("cache.txt", "w") as f:
            f.write("written by initialize")
        os.makedirs(os.path.join(self.folder, "cache", "deep"), exist_ok=True)
        self.elsewhere = os.path.join(self.folder, "elsewhere")
        os.makedirs(self.elsewhere, exist_ok=True)
        os.chdir(self.elsewhere)

    def handle(self, data, context):
        with open(os.path.join(self.folder, "cache.txt")) as f:
            kept = f.read()
        with open(os.path.join(self.folder, "cache", "deep", "rows.txt"), "a") as f:
            f.write("row\n")
        return [{"kept": kept, "stays_there": os.path.samefile(os.getcwd(), self.elsewhere)} for _ in data]
