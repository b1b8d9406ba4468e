"""Drives a manager with pydpu's own classes: `drive.py create|look|delete ADDRESS [IDENTIFIERS]`.

`create` prints the identifiers that pydpu made up, as JSON; the other two take them. What is not as it should be ends the
program with a traceback.
"""

import json
import sys
import time

import grpc
from google.protobuf.json_format import MessageToDict
from pydpu.proto.v1 import (
    backend_aio_pb2,
    backend_aio_pb2_grpc,
    backend_malloc_pb2,
    backend_malloc_pb2_grpc,
    backend_null_pb2,
    backend_null_pb2_grpc,
)
from pydpu.storage import NvmeController, NvmeNamespace, NvmeSubsystem

# As long as an identifier may be.
IDENTIFIER = "pydpu-" + 57 * "x"
VOLUME = "mallocVolumes/" + IDENTIFIER
BLOCK = 512
BLOCKS = 32768
# How long the frontend may take to see that a client has left.
PATIENCE = 20


class Drive:
    """The objects as pydpu has them, with the identifiers of an earlier run or new ones."""

    def __init__(self, address, identifiers=None):
        self.address = address
        self.subsystem = NvmeSubsystem(nqn="nqn.2014-08.org.example:pydpu", serial="PYDPU1")
        self.identify("subsystem", identifiers)
        self.controller = NvmeController(
            subsystem=self.subsystem, queue=128, pf=2, vf=5, port=1, max_nsq=4, max_ncq=4
        )
        self.identify("controller", identifiers)
        self.namespace = NvmeNamespace(subsystem=self.subsystem, volume=VOLUME)
        self.identify("namespace", identifiers)

    def identify(self, kind, identifiers):
        thing = getattr(self, kind)
        if identifiers:
            thing.name = thing.name.replace(thing.id, identifiers[kind])
            thing.id = identifiers[kind]

    def things(self):
        return self.subsystem, self.controller, self.namespace

    def volumes(self, of):
        channel = grpc.insecure_channel(self.address)
        return {
            "malloc": backend_malloc_pb2_grpc.MallocVolumeServiceStub,
            "null": backend_null_pb2_grpc.NullVolumeServiceStub,
            "aio": backend_aio_pb2_grpc.AioVolumeServiceStub,
        }[of](channel)


def refused(code, text, call):
    """The error of a call that must fail."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert text in error.details(), error
    else:
        raise AssertionError(f"{call} is not refused")


def create(drive):
    volume = backend_malloc_pb2.MallocVolume(block_size=BLOCK, blocks_count=BLOCKS)
    request = backend_malloc_pb2.CreateMallocVolumeRequest(
        malloc_volume=volume, malloc_volume_id=IDENTIFIER
    )
    made = drive.volumes("malloc").CreateMallocVolume(request)
    assert made.name == VOLUME and made.blocks_count == BLOCKS, made
    for thing in drive.things():
        first = thing.create(drive.address)
        assert first.name == thing.name, first
        # Once more is the same.
        assert thing.create(drive.address) == first, thing
    assert drive.subsystem.update(drive.address).name == drive.subsystem.name
    # pydpu asks for a volume here that is not there.
    refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        'there is no volume "Malloc1"',
        lambda: drive.namespace.update(drive.address),
    )
    print(
        json.dumps(
            {
                "subsystem": drive.subsystem.id,
                "controller": drive.controller.id,
                "namespace": drive.namespace.id,
            }
        )
    )


def look(drive):
    for thing in drive.things():
        stats = thing.stats(drive.address).stats
        assert stats.write_ops_count >= 1 and stats.write_bytes_count >= 4096, stats
        assert stats.read_ops_count >= 1 and stats.read_bytes_count >= 4096, stats
    subsystem = drive.subsystem.get(drive.address)
    assert subsystem.spec.nqn == drive.subsystem.nqn, subsystem
    assert subsystem.spec.serial_number == "PYDPU1", subsystem
    assert subsystem in drive.subsystem.list(drive.address).nvme_subsystems
    controller = drive.controller.get(drive.address)
    assert controller.status.active, controller
    place = MessageToDict(controller.spec.pcie_id, preserving_proto_field_name=True)
    assert place == {"port_id": 1, "physical_function": 2, "virtual_function": 5}, place
    assert (controller.spec.max_nsq, controller.spec.max_ncq) == (4, 4), controller
    assert list(drive.controller.list(drive.address).nvme_controllers) == [controller]
    namespace = drive.namespace.get(drive.address)
    assert namespace.spec.host_nsid == 1 and namespace.spec.volume_name_ref == VOLUME, namespace
    assert list(drive.namespace.list(drive.address).nvme_namespaces) == [namespace]
    print(namespace.spec.uuid)


def delete(drive):
    # The client has just left.
    end = time.monotonic() + PATIENCE
    while drive.controller.get(drive.address).status.active:
        assert time.monotonic() < end, "the controller has its client still"
        time.sleep(0.05)
    refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        drive.controller.name,
        lambda: drive.subsystem.delete(drive.address),
    )
    malloc = drive.volumes("malloc")
    gone = backend_malloc_pb2.DeleteMallocVolumeRequest(name=VOLUME)
    refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        drive.namespace.name,
        lambda: malloc.DeleteMallocVolume(gone),
    )
    for thing in (drive.namespace, drive.controller, drive.subsystem):
        thing.delete(drive.address)
        refused(
            grpc.StatusCode.NOT_FOUND, thing.name, lambda: thing.get(drive.address)
        )
    malloc.DeleteMallocVolume(gone)
    left = malloc.ListMallocVolumes(backend_malloc_pb2.ListMallocVolumesRequest()).malloc_volumes
    assert VOLUME not in [volume.name for volume in left], left
    empty = drive.volumes("null").ListNullVolumes(backend_null_pb2.ListNullVolumesRequest())
    assert not empty.null_volumes, empty
    empty = drive.volumes("aio").ListAioVolumes(backend_aio_pb2.ListAioVolumesRequest())
    assert not empty.aio_volumes, empty


if __name__ == "__main__":
    step, address, *identifiers = sys.argv[1:]
    steps = {"create": create, "look": look, "delete": delete}
    steps[step](Drive(address, json.loads(identifiers[0]) if identifiers else None))
