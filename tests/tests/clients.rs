//! The running frontend against what real clients send when they attach, in their order, and against a client that was
//! not written here. Each attaches, does I/O its own way and leaves.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipc::event::EventFd;
use nvme_spec::register::{Cap, offset};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{Lba, Nsid, NvmOpcode};
use vfio_user::client::{Client, VersionStyle};
use vfio_user::dma::{DmaUnmap, Iova};
use vfio_user::irq::{IrqIndex, IrqSetFlags};
use vfio_user::message::IrqSet;
use vfio_user::region::RegionIndex;
use vfio_user::version::{Capabilities, Proposal};
use vireo_tests::host::driver::MEMORY_BASE;
use vireo_tests::host::vfio_user::read_write;
use vireo_tests::host::{Attach, Driver, Host, HostMemory, VfioUser, commands};
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::PATIENCE;

const NSID: Nsid = Nsid(1);

/// Writes, reads back, with interrupts where there are vectors.
#[track_caller]
fn works<T: vireo_tests::host::Transport>(host: &mut Driver<T>) {
    host.enable();
    host.create_queues(2, 32);
    for round in 0..8_u8 {
        let data = vec![round; 12_288];
        host.write(NSID, Lba(u64::from(round) * 100), &data, 512).expect("write");
        assert!(host.read(NSID, Lba(u64::from(round) * 100), 24, 512).expect("read") == data);
    }
}

fn config_read(client: &mut Client, at: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    client.region_read(RegionIndex::CONFIG, at, &mut data).expect("read configuration space");
    data
}

/// Offset of a capability in configuration space, by its list.
fn capability(config: &[u8], id: u8) -> usize {
    let mut at = usize::from(config[0x34]);
    while at != 0 && config[at] != id {
        at = usize::from(config[at + 1]);
    }
    assert_ne!(at, 0, "capability {id:#x} is there");
    at
}

#[test]
fn qemu() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    for _ in 0..2 {
        let mut client = Client::connect(target.socket("vm0")).unwrap();
        client.set_timeout(PATIENCE);
        let capabilities = Capabilities {
            max_msg_fds: Some(8),
            max_data_xfer_size: Some(1 << 20),
            max_dma_maps: Some(65_535),
            pgsizes: Some(4096),
            write_multiple: Some(true),
        };
        let proposal = Proposal { major: 0, minor: 0, capabilities };
        let agreed = client.version(&VersionStyle::Json(proposal)).unwrap();
        assert_eq!((agreed.major, agreed.minor), (0, 0));
        let agreed = agreed.capabilities;
        assert!(
            agreed.max_msg_fds.unwrap() <= 16 && agreed.max_data_xfer_size.unwrap() <= 64 << 20
        );
        assert!(agreed.pgsizes.unwrap().is_multiple_of(4096));
        assert_eq!(agreed.write_multiple, Some(true));
        // Memory in pipelined messages: RAM below and above 4 GiB, and ROM without a descriptor.
        let memory = HostMemory::new(MEMORY_BASE, 64 << 20);
        let low = HostMemory::new(nvme_spec::Iova(0), 1 << 20);
        let fd = |memory: &HostMemory| memory.fd().try_clone_to_owned().unwrap();
        let (ram, low_ram) = (fd(&memory), fd(&low));
        let posted = [
            (0, 0xA_0000, Some((low_ram.as_fd(), 0))),
            (0xC_0000, 0x4_0000, None),
            (0xFFFC_0000, 0x4_0000, None),
            (MEMORY_BASE.0, 64 << 20, Some((ram.as_fd(), 0))),
        ]
        .map(|(at, size, fd)| client.post_dma_map(Iova(at), size, read_write(), fd).unwrap());
        for posted in posted {
            client.wait(posted).unwrap();
        }
        let info = client.device_info().unwrap();
        assert!(info.flags.pci() && info.num_regions >= 8 && info.num_irqs >= 3);
        for index in [0, 1, 2, 3, 4, 5, 7] {
            client.region_info(RegionIndex(index)).unwrap();
        }
        assert_eq!(
            client.irq_info(IrqIndex::ERR).unwrap().count,
            0,
            "a fired ERR stops the machine"
        );
        let config = config_read(&mut client, 0, 4096);
        assert_eq!(config[0x3D], 0, "no interrupt pin");
        assert_eq!(config[9..12], [2, 8, 1], "an NVMe controller");
        client.region_write(RegionIndex::CONFIG, 0x30, &0xFFFF_F800_u32.to_le_bytes()).unwrap();
        assert_eq!(config_read(&mut client, 0x30, 4), [0; 4], "no ROM");
        let msix = client.irq_info(IrqIndex::MSIX).unwrap();
        assert!(msix.flags.noresize() && (33..=128).contains(&msix.count), "{msix:?}");
        let bar0 = client.region_info(RegionIndex::BAR0).unwrap();
        assert_eq!(bar0.areas.len(), 1, "one sparse area");
        // Reset, BARs, memory and bus master, MSI-X without a vector, then vectors in runs.
        if info.flags.reset() {
            client.reset().unwrap();
        }
        client.region_write(RegionIndex::CONFIG, 0x10, &0xFEBF_0004_u32.to_le_bytes()).unwrap();
        client.region_write(RegionIndex::CONFIG, 4, &6_u16.to_le_bytes()).unwrap();
        let control = capability(&config, 0x11) as u64 + 2;
        client.region_write(RegionIndex::CONFIG, control, &0x8000_u16.to_le_bytes()).unwrap();
        let flags = IrqSetFlags::new().with_data_eventfd(true).with_trigger(true);
        let set = |start, count| IrqSet { argsz: 0, flags, index: IrqIndex::MSIX, start, count };
        client.set_irqs(set(0, 1), &[], &[]).unwrap();
        let vectors: Vec<_> = (0..4).map(|_| EventFd::create().unwrap()).collect();
        let fds: Vec<_> = vectors.iter().map(AsFd::as_fd).collect();
        client.set_irqs(set(0, 2), &[], &fds[..2]).unwrap();
        client.set_irqs(set(2, 2), &[], &fds[2..]).unwrap();
        client.set_irqs(set(4, 3), &[], &[]).unwrap();
        let transport = VfioUser::of(client, bar0.fd, vectors);
        let mut host = Driver::new(transport, memory);
        works(&mut host);
        let buffer = host.memory.allocate(4096);
        let read = commands::io(NvmOpcode::READ, NSID, Lba(0), 8);
        let read = host.memory.with_prps(read, buffer);
        let vector = host.queues[1].vector;
        host.transport.vector_of(vector).drain().unwrap();
        host.submit(1, read);
        host.await_interrupt(vector);
        // It shuts down in order: no vectors, no memory, gone.
        let none = IrqSetFlags::new().with_data_none(true).with_trigger(true);
        let set = IrqSet { argsz: 0, flags: none, index: IrqIndex::MSIX, start: 0, count: 0 };
        host.transport.client.set_irqs(set, &[], &[]).unwrap();
        host.transport.client.dma_unmap(DmaUnmap::All).unwrap();
    }
    assert!(target.stop().success());
}

#[test]
fn cloud_hypervisor_s_own_crate() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    let socket = target.socket("vm0");
    for _ in 0..2 {
        let mut client = foreign_vfio_user::Client::new(&socket).unwrap();
        let bar0 = client.region(0).unwrap();
        let size = bar0.size;
        assert!(size >= 16 << 10 && bar0.sparse_areas.len() == 1 && bar0.file_offset.is_some());
        let msix = client.get_irq_info(2).unwrap();
        let eventfds: Vec<_> = (0..16).map(|_| EventFd::create().unwrap()).collect();
        let raw: Vec<_> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(msix.count >= 33);
        client.set_irqs(2, 0x24, 0, 16, &raw).unwrap();
        // BARs are sized by writing ones to them.
        client.region_write(7, 0x10, &u32::MAX.to_le_bytes()).unwrap();
        let mut low = [0; 4];
        client.region_read(7, 0x10, &mut low).unwrap();
        assert_eq!(!(u32::from_le_bytes(low) & !0xF) + 1, size as u32);
        client.region_write(7, 4, &6_u16.to_le_bytes()).unwrap();
        let memory = HostMemory::new(MEMORY_BASE, 32 << 20);
        client.dma_map(0, MEMORY_BASE.0, memory.len(), memory.fd().as_raw_fd()).unwrap();
        // What it cannot tell from success has the form of success.
        let mut ones = [0; 8];
        client.region_read(0, 1 << 40, &mut ones).unwrap();
        assert_eq!(ones, [0xFF; 8]);
        client.dma_unmap(0x7_0000_0000, 0x1000).unwrap();
        let mut host = Driver::new(Foreign { client, vectors: eventfds }, memory);
        works(&mut host);
        host.transport.client.dma_unmap(MEMORY_BASE.0, 32 << 20).unwrap();
        host.transport.client.shutdown().unwrap();
    }
    assert!(target.stop().success());
}

/// The foreign client as a transport: registers and doorbells by message.
struct Foreign {
    client: foreign_vfio_user::Client,
    vectors: Vec<EventFd>,
}

impl vireo_tests::host::Transport for Foreign {
    fn read_register(&mut self, offset: u64, data: &mut [u8]) {
        self.client.region_read(0, offset, data).expect("read a register");
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) {
        self.client.region_write(0, offset, data).expect("write a register");
    }

    fn ring(&mut self, index: usize, value: u32) {
        let at = nvme_spec::register::offset::DOORBELLS + 4 * index as u64;
        self.client.region_write(0, at, &value.to_le_bytes()).expect("ring");
    }

    fn relax(&mut self) {
        std::thread::yield_now();
    }

    fn vector(&self, vector: u16) -> Option<&EventFd> {
        self.vectors.get(usize::from(vector))
    }
}

#[test]
fn spdk() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    for _ in 0..3 {
        let mut client = Client::connect(target.socket("vm0")).unwrap();
        client.set_timeout(PATIENCE);
        client.version(&VersionStyle::Bare { minor: 0 }).unwrap();
        client.device_info().unwrap();
        let mut doorbells = None;
        for index in 0..9 {
            let details = client.region_info_sized(RegionIndex(index), 4064).unwrap();
            assert!(details.info.argsz <= 4064);
            if index == 0 {
                assert_eq!((details.areas[0].offset, details.areas[0].size), (0x1000, 0x1000));
                doorbells = details.fd;
            } else {
                assert!(details.fd.is_none(), "one descriptor for each sparse area");
            }
        }
        let memory = HostMemory::new(MEMORY_BASE, 32 << 20);
        let part = Some((memory.fd(), 0));
        client.dma_map(Iova(MEMORY_BASE.0), memory.len(), read_write(), part).unwrap();
        // Configuration space two bytes at a time, registers four and eight.
        let command = config_read(&mut client, 4, 2);
        let command = u16::from_le_bytes([command[0], command[1]]) | 0x406;
        client.region_write(RegionIndex::CONFIG, 4, &command.to_le_bytes()).unwrap();
        let mut cap = [0; 8];
        client.region_read(RegionIndex::BAR0, offset::CAP, &mut cap).unwrap();
        let mut host = Driver::new(VfioUser::of(client, doorbells, Vec::new()), memory);
        assert_eq!(host.cap(), Cap::from_bits(u64::from_le_bytes(cap)));
        works(&mut host);
        // One data block of 128 KiB, as it sends where SGLs are offered.
        let data = host.memory.allocate(128 << 10);
        host.memory.fill(data, 0x5D);
        let block = SglDescriptor::data_block(data.iova, data.len as u32);
        let write = commands::io(NvmOpcode::WRITE, NSID, Lba(4096), 256).with_sgl(block);
        assert!(host.io(0, write).status().is_success());
        host.memory.fill(data, 0);
        let read = commands::io(NvmOpcode::READ, NSID, Lba(4096), 256).with_sgl(block);
        assert!(host.io(0, read).status().is_success());
        assert!(host.memory.read(data.iova, data.len as usize).iter().all(|&byte| byte == 0x5D));
        // It takes memory back with a descriptor that nobody asked for, or goes without a word.
        let whole = host.memory.whole();
        host.transport.unmap(whole).unwrap();
    }
    assert!(target.stop().success());
}

#[test]
fn connects_that_come_again_and_again_and_two_at_a_time() {
    let target = Target::start(&one_memory_namespace(&["vm0"]));
    for _ in 0..100 {
        drop(UnixStream::connect(target.socket("vm0")).unwrap());
    }
    let mut first = Host::connect(target.socket("vm0"));
    // The second waits for its turn, and the first is not disturbed.
    let mut second = Client::connect(target.socket("vm0")).unwrap();
    second.set_timeout(Duration::from_millis(300));
    let hello = second.version(&VersionStyle::Bare { minor: 0 });
    first.write(NSID, Lba(0), &[1; 512], 512).unwrap();
    drop((first, second));
    drop(hello);
    let mut next = Host::connect(target.socket("vm0"));
    assert!(next.read(NSID, Lba(0), 1, 512).unwrap() == [1; 512]);
    assert!(target.stop().success());
}

#[test]
fn doorbells_by_message_and_in_memory() {
    let tables = one_memory_namespace(&["vm0"]) + "doorbells = \"shadow\"\n";
    let target = Target::start(&tables);
    let mut host = Host::attach(target.socket("vm0"), &Attach::default());
    assert!(!host.transport.maps_doorbells(), "the page is not offered");
    works(&mut host);
    host.enable();
    host.use_shadow_doorbells();
    host.create_queues(2, 16);
    for round in 0..200_u64 {
        host.write(NSID, Lba(round), &[round as u8; 512], 512).unwrap();
        // From busy to asleep and back.
        if round % 20 == 0 {
            std::thread::sleep(Duration::from_millis(round));
        }
    }
    for round in 0..200_u64 {
        assert!(host.read(NSID, Lba(round), 1, 512).unwrap() == [round as u8; 512]);
    }
    assert!(target.stop().success());
}

#[test]
fn many_clients_on_many_subsystems() {
    let mut tables = String::from("[[worker]]\nname = \"w1\"\n[[frontend]]\nname = \"f1\"\n");
    for index in 0..8 {
        tables += &format!(
            "[[bdev]]\nname = \"mem{index}\"\ndriver = \"malloc\"\nsize = \"16MiB\"\nchannel = \"{}\"\n\
             [[subsystem]]\nname = \"s{index}\"\nserial = \"S{index}\"\nfrontend = \"f{}\"\n\
             [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem{index}\"\n\
             [[endpoint]]\nname = \"vm{index}\"\nsubsystem = \"s{index}\"\n",
            if index % 2 == 0 { "ring" } else { "lease" },
            index % 2
        );
    }
    let target = Target::start(&configuration(&tables));
    let mut hosts: Vec<_> =
        (0..8).map(|index| Host::connect(target.socket(&format!("vm{index}")))).collect();
    for (index, host) in hosts.iter_mut().enumerate() {
        host.write(NSID, Lba(5), &[index as u8 + 1; 4096], 512).unwrap();
    }
    for (index, host) in hosts.iter_mut().enumerate() {
        assert!(host.read(NSID, Lba(5), 8, 512).unwrap() == [index as u8 + 1; 4096]);
    }
    assert!(target.stop().success());
}
