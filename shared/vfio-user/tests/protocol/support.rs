//! A device and a rig around a session. Messages are built from plain numbers, not from the
//! structures under test.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user::dma::{DmaMap, DmaUnmap, Iova};
use vfio_user::irq::{IrqIndex, IrqRequest, Vectors};
use vfio_user::message::SparseMmapArea;
use vfio_user::pci::config::{CLASS_NVME, ConfigSpace, MSIX_BAR_SIZE, Profile};
use vfio_user::pci::msix::Msix;
use vfio_user::region::{Region, RegionIndex, RegionMapping};
use vfio_user::server::{Act, Device, DeviceDescription, Outcome, Session};
use vfio_user::version::Limits;
use vfio_user::{Command, Errno, Header};

pub const BAR0_SIZE: u64 = 0x4000;
pub const VECTORS: u32 = 64;
pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 0x10;
pub const ERROR: u32 = 0x20;
/// Offset of a register that the device refuses to read and write.
pub const BROKEN_REGISTER: u64 = 0x100;

/// Bytes of plain numbers in the host's order.
#[derive(Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub fn bytes() -> Bytes {
    Bytes::default()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn profile() -> Profile {
    Profile {
        vendor_id: 0x1b36,
        device_id: 0x0010,
        subsystem_vendor_id: 0x1af4,
        subsystem_id: 0x1100,
        revision_id: 2,
        class_code: CLASS_NVME,
        bar0_size: BAR0_SIZE,
        msix_vectors: VECTORS as u16,
        serial_number: Some(0x0123_4567_89ab_cdef),
        advanced_error_reporting: true,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub iova: Iova,
    pub size: u64,
    pub has_fd: bool,
    pub writable: bool,
}

/// A device that does as it is told and remembers it.
pub struct TestDevice {
    pub maps: Vec<Mapping>,
    pub registers: Vec<u8>,
    pub writes: Vec<(RegionIndex, u64, Vec<u8>)>,
    pub config: ConfigSpace,
    pub msix: Msix,
    pub vectors: Vectors,
    pub signalled: Vec<u32>,
    pub resets: usize,
    /// Acts that can wait are deferred.
    pub defer: bool,
}

impl TestDevice {
    pub fn new() -> Self {
        Self {
            maps: Vec::new(),
            registers: (0..BAR0_SIZE).map(|at| at as u8).collect(),
            writes: Vec::new(),
            config: ConfigSpace::new(&profile()).unwrap(),
            msix: Msix::new(VECTORS as u16),
            vectors: Vectors::new(VECTORS),
            signalled: Vec::new(),
            resets: 0,
            defer: false,
        }
    }

    fn act(&self) -> Act {
        if self.defer { Act::Deferred } else { Act::Completed }
    }
}

impl Device for TestDevice {
    fn dma_map(&mut self, map: DmaMap) -> Result<Act, Errno> {
        let mapping = Mapping {
            iova: map.iova,
            size: map.size,
            has_fd: map.fd.is_some(),
            writable: map.access.write(),
        };
        if self.maps.contains(&mapping) {
            return Ok(self.act());
        }
        let overlaps = |other: &Mapping| {
            let last = map.iova.0 + (map.size - 1);
            other.iova.0 <= last && map.iova.0 <= other.iova.0 + (other.size - 1)
        };
        if self.maps.iter().any(overlaps) {
            return Err(Errno::EEXIST);
        }
        self.maps.push(mapping);
        Ok(self.act())
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<Act, Errno> {
        match unmap {
            DmaUnmap::All => self.maps.clear(),
            DmaUnmap::Exact { iova, size } => {
                let before = self.maps.len();
                self.maps.retain(|map| (map.iova, map.size) != (iova, size));
                if self.maps.len() == before {
                    return Err(Errno::ENOENT);
                }
            }
        }
        Ok(self.act())
    }

    fn region_read(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        match region {
            RegionIndex::BAR0 if offset == BROKEN_REGISTER => return Err(Errno::EIO),
            RegionIndex::BAR0 => {
                let start = offset as usize;
                data.copy_from_slice(&self.registers[start..start + data.len()]);
            }
            RegionIndex::BAR4 => self.msix.read_table(offset, data),
            RegionIndex::BAR5 => self.msix.read_pending(offset, data),
            RegionIndex::CONFIG => self.config.read(offset, data),
            other => panic!("region {other:?} is not described"),
        }
        Ok(())
    }

    fn region_write(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<Act, Errno> {
        self.writes.push((region, offset, data.to_vec()));
        match region {
            RegionIndex::BAR0 if offset == BROKEN_REGISTER => return Err(Errno::EIO),
            RegionIndex::BAR0 => {
                let start = offset as usize;
                self.registers[start..start + data.len()].copy_from_slice(data);
            }
            RegionIndex::BAR4 => drop(self.msix.write_table(offset, data)),
            RegionIndex::BAR5 => {}
            RegionIndex::CONFIG => drop(self.config.write(offset, data)),
            other => panic!("region {other:?} is not described"),
        }
        Ok(self.act())
    }

    fn set_irqs(&mut self, request: IrqRequest) -> Result<Act, Errno> {
        if request.irq() == IrqIndex::MSIX {
            self.signalled.extend(self.vectors.apply(request).signal);
        }
        Ok(self.act())
    }

    fn reset(&mut self) -> Result<Act, Errno> {
        self.resets += 1;
        Ok(self.act())
    }
}

/// A successful or failed reply.
#[derive(Debug)]
pub struct Reply {
    pub header: Header,
    pub body: Vec<u8>,
    pub fds: Vec<Arc<OwnedFd>>,
}

impl Reply {
    pub fn of(outcome: Outcome) -> Self {
        let Outcome::Reply(reply) = outcome else { panic!("no reply but {outcome:?}") };
        let header = Header::parse(&reply.bytes).unwrap();
        assert_eq!(header.size as usize, reply.bytes.len());
        assert_eq!(u32::from(header.flags) & 0xf, REPLY);
        Self { header, body: reply.bytes[16..].to_vec(), fds: reply.fds }
    }

    pub fn errno(&self) -> Option<u32> {
        let failed = u32::from(self.header.flags) & ERROR != 0;
        assert!(!failed || self.body.is_empty(), "an error reply is the header alone");
        failed.then_some(self.header.error)
    }
}

/// The description that the test device goes with.
pub fn description() -> DeviceDescription {
    let doorbells = RegionMapping {
        fd: Arc::new(memfd(BAR0_SIZE)),
        offset: 0,
        areas: vec![SparseMmapArea { offset: 0x1000, size: 0x1000 }],
    };
    DeviceDescription::pci(4096, VECTORS)
        .with_region(RegionIndex::BAR0, Region::read_write(BAR0_SIZE).with_mapping(doorbells))
        .with_region(RegionIndex::BAR4, Region::read_write(MSIX_BAR_SIZE))
        .with_region(RegionIndex::BAR5, Region::read_write(MSIX_BAR_SIZE))
}

/// A session and its device.
pub struct Rig {
    pub session: Session,
    pub device: TestDevice,
}

impl Rig {
    /// Nothing is negotiated.
    pub fn fresh() -> Self {
        let session = Session::new(description(), Limits::default());
        Self { session, device: TestDevice::new() }
    }

    /// As after a VERSION without JSON.
    pub fn new() -> Self {
        let mut rig = Self::fresh();
        let reply = rig.call(Command::VERSION, bytes().u16(0).u16(0));
        assert_eq!(reply.errno(), None);
        rig
    }

    pub fn raw(&mut self, header: &[u8], body: &[u8], fds: Vec<OwnedFd>) -> Outcome {
        let header = Header::parse(header).unwrap();
        assert_eq!(vfio_user::framing::check(&header), Ok(16 + body.len()));
        self.session.handle(&header, body, fds, &mut self.device)
    }

    pub fn send(
        &mut self,
        command: Command,
        flags: u32,
        body: Bytes,
        fds: Vec<OwnedFd>,
    ) -> Outcome {
        let size = 16 + body.0.len() as u32;
        let header = bytes().u16(0x77).u16(command.0).u32(size).u32(flags).u32(0);
        self.raw(&header.0, &body.0, fds)
    }

    pub fn call_with(&mut self, command: Command, body: Bytes, fds: Vec<OwnedFd>) -> Reply {
        let reply = Reply::of(self.send(command, 0, body, fds));
        assert_eq!((reply.header.id, reply.header.command), (0x77, command));
        reply
    }

    pub fn call(&mut self, command: Command, body: Bytes) -> Reply {
        self.call_with(command, body, Vec::new())
    }

    /// Body of a reply that must succeed.
    pub fn ok(&mut self, command: Command, body: Bytes) -> Vec<u8> {
        let reply = self.call(command, body);
        assert_eq!(reply.errno(), None, "{command:?}");
        reply.body
    }

    /// Error of a reply that must fail.
    pub fn refused(&mut self, command: Command, body: Bytes) -> u32 {
        self.call(command, body).errno().expect("refused")
    }

    pub fn finish(&mut self, outcome: Outcome, result: Result<(), Errno>) -> Outcome {
        let Outcome::Deferred(deferred) = outcome else { panic!("not deferred: {outcome:?}") };
        self.session.finish(deferred, result, &mut self.device)
    }
}
