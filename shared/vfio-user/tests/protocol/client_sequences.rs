//! What real clients send when they attach: the messages and fields that their sources build, in their order, without
//! what this server does not look at. That the clients themselves get along with it is shown where they run.

use vfio_user::server::Outcome;
use vfio_user::{Command, Errno};

use crate::support::{BAR0_SIZE, Bytes, Reply, Rig, VECTORS, bytes, event, memfd, u32_at, u64_at};

fn header(id: u16, command: u16, body: usize, flags: u32) -> Vec<u8> {
    bytes().u16(id).u16(command).u32(16 + body as u32).u32(flags).u32(0).0
}

fn region(argsz: u32, index: u32) -> Bytes {
    bytes().u32(argsz).u32(0).u32(index).u32(0).u64(0).u64(0)
}

fn access(offset: u64, region: u32, count: u32) -> Bytes {
    bytes().u64(offset).u32(region).u32(count)
}

#[test]
fn qemu_attaches() {
    let mut rig = Rig::fresh();
    let json = b"{\"capabilities\": {\"max_msg_fds\": 8, \"max_data_xfer_size\": 1048576, \
\"max_dma_maps\": 65535, \"pgsizes\": 4096, \"write_multiple\": true}}\0";
    let version = rig.ok(Command::VERSION, bytes().u16(0).u16(0).raw(json));
    assert_eq!((version[..4].to_vec(), version.last()), (vec![0; 4], Some(&0)));
    // Guest memory, and ROM that QEMU has no descriptor for.
    for (iova, size, fds) in [
        (0, 0xa_0000, vec![memfd(1 << 20)]),
        (0xc_0000, 0x4_0000, vec![]),
        (0xfffc_0000, 0x4_0000, vec![]),
    ] {
        let map = bytes().u32(32).u32(3).u64(0).u64(iova).u64(size);
        assert_eq!(rig.call_with(Command::DMA_MAP, map, fds).errno(), None);
    }
    let info = rig.ok(Command::DEVICE_GET_INFO, bytes().u32(16).u32(0).u32(0).u32(0));
    assert_ne!(u32_at(&info, 4) & 2, 0, "a PCI function");
    assert!(u32_at(&info, 8) >= 8 && u32_at(&info, 12) >= 3);
    for index in [0, 1, 2, 3, 4, 5, 7] {
        let small = rig.call(Command::DEVICE_GET_REGION_INFO, region(32, index));
        let needed = u32_at(&small.body, 0);
        if needed > 32 {
            let full = rig.call(Command::DEVICE_GET_REGION_INFO, region(needed, index));
            assert_eq!((full.body.len(), full.fds.len()), (needed as usize, 1));
            let cap_offset = u32_at(&full.body, 12);
            assert!(cap_offset >= 32 && cap_offset <= needed);
        }
    }
    let irq = |index| bytes().u32(16).u32(0).u32(index).u32(0);
    assert_eq!(u32_at(&rig.ok(Command::DEVICE_GET_IRQ_INFO, irq(3)), 12), 0);
    let config = rig.ok(Command::REGION_READ, access(0, 7, 4096));
    assert_eq!(config[16 + 0x3d], 0, "no interrupt pin");
    // The ROM BAR is sized by writing it.
    rig.ok(Command::REGION_WRITE, access(0x30, 7, 4).u32(0xffff_f800));
    assert_eq!(u32_at(&rig.ok(Command::REGION_READ, access(0x30, 7, 4)), 16), 0);
    let msix = rig.ok(Command::DEVICE_GET_IRQ_INFO, irq(2));
    assert_eq!((u32_at(&msix, 4) & 8, u32_at(&msix, 12)), (8, VECTORS));
    // Reset, then MSI-X: enabled without a vector, vectors in runs, one taken away.
    rig.ok(Command::DEVICE_RESET, bytes());
    let set = |start, count| bytes().u32(20).u32(0x24).u32(2).u32(start).u32(count);
    rig.ok(Command::DEVICE_SET_IRQS, set(0, 1));
    let fds = (0..4).map(|_| event()).collect();
    assert_eq!(rig.call_with(Command::DEVICE_SET_IRQS, set(0, 4), fds).errno(), None);
    rig.ok(Command::DEVICE_SET_IRQS, set(4, 2));
    rig.ok(Command::DEVICE_SET_IRQS, set(3, 1));
    let assigned = (0..VECTORS).filter(|&vector| rig.device.vectors.eventfd(vector).is_some());
    assert_eq!(assigned.collect::<Vec<_>>(), [0, 1, 2]);
    // A posted write, then a read that finds it done.
    let outcome = rig.send(Command::REGION_WRITE, 0x10, access(0x14, 0, 4).u32(5), Vec::new());
    assert!(matches!(outcome, Outcome::Silent));
    assert_eq!(u32_at(&rig.ok(Command::REGION_READ, access(0x14, 0, 4)), 16), 5);
    rig.ok(Command::DMA_UNMAP, bytes().u32(24).u32(2).u64(0).u64(0));
    assert!(rig.device.maps.is_empty());
}

#[test]
fn cloud_hypervisor_attaches() {
    let mut rig = Rig::fresh();
    let json = b"{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":1048576,\
\"migration\":{\"pgsize\":4096}}}\0";
    let version = rig.ok(Command::VERSION, bytes().u16(0).u16(1).raw(json));
    assert_eq!(version[..4], bytes().u16(0).u16(1).0);
    let info = rig.ok(Command::DEVICE_GET_INFO, bytes().u32(32).u32(0).u32(0).u32(0));
    for index in 0..u32_at(&info, 8) {
        let small = rig.call(Command::DEVICE_GET_REGION_INFO, region(32, index));
        assert_eq!((small.errno(), small.body.len()), (None, 32));
        let needed = u32_at(&small.body, 0);
        if needed > 32 {
            let full = rig.call(Command::DEVICE_GET_REGION_INFO, region(needed, index));
            assert_eq!(full.body.len(), u32_at(&full.body, 0) as usize, "filled exactly");
        }
    }
    for index in 0..u32_at(&info, 12) {
        rig.ok(Command::DEVICE_GET_IRQ_INFO, bytes().u32(16).u32(0).u32(index).u32(0));
    }
    // BARs are sized in configuration space.
    for at in [0x10, 0x14] {
        rig.ok(Command::REGION_WRITE, access(at, 7, 4).u32(u32::MAX));
    }
    let low = u32_at(&rig.ok(Command::REGION_READ, access(0x10, 7, 4)), 16);
    let high = u32_at(&rig.ok(Command::REGION_READ, access(0x14, 7, 4)), 16);
    let mask = u64::from(high) << 32 | u64::from(low & !0xf);
    assert_eq!((!mask + 1, low & 0xf), (BAR0_SIZE, 4));
    let fds = (0..16).map(|_| event()).collect();
    let set = bytes().u32(20).u32(0x24).u32(2).u32(0).u32(16);
    assert_eq!(rig.call_with(Command::DEVICE_SET_IRQS, set, fds).errno(), None);
    // It reads a fixed number of bytes whatever the header says.
    assert_eq!(rig.ok(Command::REGION_READ, access(1 << 40, 0, 8)).len(), 24);
    assert_eq!(rig.ok(Command::REGION_WRITE, access(1 << 40, 0, 8).u64(1)).len(), 16);
    let unmap = || bytes().u32(24).u32(0).u64(1 << 40).u64(4096);
    assert_eq!(rig.ok(Command::DMA_UNMAP, unmap()).len(), 24);
}

#[test]
fn spdk_attaches() {
    let mut rig = Rig::fresh();
    let version = Reply::of(rig.raw(&header(0, 1, 4, 0), &[0; 4], Vec::new()));
    assert_eq!(version.errno(), None);
    for index in 0..9 {
        let reply = Reply::of(rig.raw(&header(0, 5, 32, 0), &region(4064, index).0, Vec::new()));
        assert!(16 + reply.body.len() <= 4096);
        let mapped = u32_at(&reply.body, 4) & 8 != 0;
        assert_eq!(reply.fds.len(), usize::from(mapped));
        if mapped {
            assert_eq!(u32_at(&reply.body, 40), 1, "one area");
            assert_eq!((u64_at(&reply.body, 48), u64_at(&reply.body, 56)), (0x1000, 0x1000));
        }
    }
    let map = bytes().u32(32).u32(3).u64(0).u64(0x2000_0000_0000).u64(0x20_0000);
    assert_eq!(
        Reply::of(rig.raw(&header(0, 2, 32, 0), &map.0, vec![memfd(0x20_0000)])).errno(),
        None
    );
    // Memory space and bus master, two bytes at a time.
    let command = Reply::of(rig.raw(&header(0, 9, 16, 0), &access(4, 7, 2).0, Vec::new()));
    assert_eq!(command.body[16..], [0, 0]);
    let enable = access(4, 7, 2).u16(0x0406);
    assert_eq!(Reply::of(rig.raw(&header(0, 10, 18, 0), &enable.0, Vec::new())).errno(), None);
    assert!(rig.device.config.memory_enabled() && rig.device.config.bus_master());
    let cap = Reply::of(rig.raw(&header(0, 9, 16, 0), &access(0, 0, 8).0, Vec::new()));
    assert_eq!(cap.body.len(), 24);
    let unmap = bytes().u32(24).u32(0).u64(0x2000_0000_0000).u64(0x20_0000);
    let reply = Reply::of(rig.raw(&header(0, 3, 24, 0), &unmap.0, vec![memfd(0)]));
    assert_eq!((reply.errno(), reply.body), (None, unmap.0));
    assert!(rig.device.maps.is_empty());
}

#[test]
fn migration_of_trees_in_flight_is_declined() {
    let mut rig = Rig::new();
    let probe = bytes().u32(8).u32(0x7_0001);
    assert_eq!(rig.refused(Command::DEVICE_FEATURE, probe), Errno::ENOTSUP.0);
}
