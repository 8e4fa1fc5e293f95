"""Model configuration in Triton's words (contracts/open-inference.md, section 4): what it says, what of it is served, and how it is shown.

`reading` makes the one message of a text, a mapping or JSON; `checks` and `refusals` say what is wrong with it; `printing` shows it as
Triton does; `filling` adds what Triton would; `meaning` is what the server makes of it. protobuf is imported only where somebody has
written such a configuration.
"""
