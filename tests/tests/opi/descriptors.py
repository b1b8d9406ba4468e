"""Prints what pydpu says of OPI's storage services: a google.protobuf.FileDescriptorSet in hexadecimal digits."""

from google.protobuf import descriptor_pb2
from pydpu.proto.v1 import (
    backend_aio_pb2,
    backend_malloc_pb2,
    backend_null_pb2,
    frontend_nvme_pb2,
    opicommon_pb2,
)

files = descriptor_pb2.FileDescriptorSet()
for module in (
    opicommon_pb2,
    frontend_nvme_pb2,
    backend_null_pb2,
    backend_malloc_pb2,
    backend_aio_pb2,
):
    module.DESCRIPTOR.CopyToProto(files.file.add())
print(files.SerializeToString().hex())
