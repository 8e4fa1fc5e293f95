"""The pool that holds the descriptors of our messages: one of our own.

Others define the same names, as a client library of the Open Inference Protocol does, and a process may want both. The modules
that `make proto` makes add their files here instead of to the pool that everybody shares.
"""

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
for _each in (any_pb2, empty_pb2):  # that our files import
    POOL.AddSerializedFile(_each.DESCRIPTOR.serialized_pb)
