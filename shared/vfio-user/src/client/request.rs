//! One call for each command.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, IntoBytes};

use super::{Client, ClientError, Posted, VersionStyle};
use crate::dma::{DmaAccess, DmaUnmap, Iova};
use crate::irq::{IrqIndex, IrqSetFlags};
use crate::message::{
    Command, DeviceInfo, DmaMapBody, DmaUnmapBody, DmaUnmapFlags, IrqInfo, IrqSet, RegionAccess,
    RegionInfo, SparseMmapArea, VersionBody, WriteMulti, WriteMultiHeader,
};
use crate::region::{RegionIndex, parse_sparse_areas};
use crate::version::{MAJOR, Proposal};

/// A region as the server describes it.
#[derive(Debug)]
pub struct RegionDetails {
    /// The fixed part.
    pub info: RegionInfo,
    /// What can be mapped; empty without a sparse mmap capability.
    pub areas: Vec<SparseMmapArea>,
    /// The descriptor to map.
    pub fd: Option<OwnedFd>,
}

/// Largest reply body asked for a second time; a server that needs more is not believed.
const MAX_REGION_INFO: u32 = 64 * 1024;

impl Client {
    /// Proposes a version, and returns what the server answered.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn version(&mut self, style: &VersionStyle) -> Result<Proposal, ClientError> {
        let body = match style {
            VersionStyle::Json(proposal) => proposal.encode(),
            VersionStyle::Bare { minor } => {
                VersionBody { major: MAJOR, minor: *minor }.as_bytes().to_vec()
            }
        };
        let command = Command::VERSION;
        let (reply, _) = self.call(command, &body, &[])?;
        Proposal::parse(&reply)
            .map_err(|_| ClientError::BadReply { command, what: "version or capabilities" })
    }

    /// Offers `size` bytes of memory at `iova`: the descriptor's, from `offset` on, or memory
    /// that the server cannot reach.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dma_map(
        &mut self,
        iova: Iova,
        size: u64,
        access: DmaAccess,
        memory: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), ClientError> {
        let posted = self.post_dma_map(iova, size, access, memory)?;
        self.wait(posted).map(drop)
    }

    /// As [`Client::dma_map`], without waiting for the reply.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_dma_map(
        &mut self,
        iova: Iova,
        size: u64,
        access: DmaAccess,
        memory: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<Posted, ClientError> {
        let body = DmaMapBody {
            argsz: size_of::<DmaMapBody>() as u32,
            flags: access,
            offset: memory.map_or(0, |(_, offset)| offset),
            address: iova.0,
            size,
        };
        let fds: Vec<_> = memory.into_iter().map(|(fd, _)| fd).collect();
        self.post(Command::DMA_MAP, body.as_bytes(), &fds)
    }

    /// Takes memory back. When this returns, the server touches it no more.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), ClientError> {
        let (flags, address, size) = match unmap {
            DmaUnmap::Exact { iova, size } => (DmaUnmapFlags::new(), iova.0, size),
            DmaUnmap::All => (DmaUnmapFlags::new().with_all(true), 0, 0),
        };
        let argsz = size_of::<DmaUnmapBody>() as u32;
        let body = DmaUnmapBody { argsz, flags, address, size };
        let command = Command::DMA_UNMAP;
        let (reply, _) = self.call(command, body.as_bytes(), &[])?;
        fixed::<DmaUnmapBody>(command, &reply).map(drop)
    }

    /// What the device is, and how many regions and interrupt types it has.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let argsz = size_of::<DeviceInfo>() as u32;
        let body = DeviceInfo { argsz, ..DeviceInfo::default() };
        let (reply, _) = self.call(Command::DEVICE_GET_INFO, body.as_bytes(), &[])?;
        fixed(Command::DEVICE_GET_INFO, &reply)
    }

    /// Describes a region: asks with room for the fixed part, then with what the server needs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_info(&mut self, index: RegionIndex) -> Result<RegionDetails, ClientError> {
        let fixed_size = size_of::<RegionInfo>() as u32;
        let details = self.region_info_sized(index, fixed_size)?;
        let argsz = details.info.argsz;
        if argsz <= fixed_size {
            return Ok(details);
        }
        if argsz > MAX_REGION_INFO {
            let command = Command::DEVICE_GET_REGION_INFO;
            return Err(ClientError::BadReply { command, what: "the size it needs" });
        }
        self.region_info_sized(index, argsz)
    }

    /// Describes a region in one exchange with room for `argsz` bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_info_sized(
        &mut self,
        index: RegionIndex,
        argsz: u32,
    ) -> Result<RegionDetails, ClientError> {
        let body = RegionInfo { argsz, index, ..RegionInfo::default() };
        let command = Command::DEVICE_GET_REGION_INFO;
        let (reply, fds) = self.call(command, body.as_bytes(), &[])?;
        let info: RegionInfo = fixed(command, &reply)?;
        let areas = parse_sparse_areas(&info, &reply);
        Ok(RegionDetails { info, areas, fd: fds.into_iter().next() })
    }

    /// Describes an interrupt type.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn irq_info(&mut self, index: IrqIndex) -> Result<IrqInfo, ClientError> {
        let argsz = size_of::<IrqInfo>() as u32;
        let body = IrqInfo { argsz, index, ..IrqInfo::default() };
        let (reply, _) = self.call(Command::DEVICE_GET_IRQ_INFO, body.as_bytes(), &[])?;
        fixed(Command::DEVICE_GET_IRQ_INFO, &reply)
    }

    /// Configures, masks or fires interrupts: `start` and `count` of the set, with the bytes of
    /// BOOL data and the descriptors of EVENTFD data. `argsz` of the set is filled in.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_irqs(
        &mut self,
        set: IrqSet,
        data: &[u8],
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let command = Command::DEVICE_SET_IRQS;
        let argsz = u32::try_from(size_of::<IrqSet>() + data.len())
            .map_err(|_| ClientError::BadRequest { command, what: "so many interrupts" })?;
        let mut body = IrqSet { argsz, ..set }.as_bytes().to_vec();
        body.extend_from_slice(data);
        self.call(command, &body, eventfds).map(drop)
    }

    /// Gives interrupts from `start` on these eventfds; with none, nothing is asked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_eventfds(
        &mut self,
        index: IrqIndex,
        start: u32,
        eventfds: &[impl AsFd],
    ) -> Result<(), ClientError> {
        let flags = IrqSetFlags::new().with_data_eventfd(true).with_trigger(true);
        let mut at = start;
        for run in eventfds.chunks(crate::framing::MAX_MSG_FDS) {
            let fds: Vec<_> = run.iter().map(AsFd::as_fd).collect();
            let set = IrqSet { argsz: 0, flags, index, start: at, count: fds.len() as u32 };
            self.set_irqs(set, &[], &fds)?;
            at = at.saturating_add(fds.len() as u32);
        }
        Ok(())
    }

    /// Fills `data` from the region.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_read(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), ClientError> {
        let command = Command::REGION_READ;
        let access = access(command, region, offset, data.len())?;
        let (reply, _) = self.call(command, access.as_bytes(), &[])?;
        let head: RegionAccess = fixed(command, &reply)?;
        match reply.get(size_of::<RegionAccess>()..) {
            Some(read) if head == access && read.len() == data.len() => {
                data.copy_from_slice(read);
                Ok(())
            }
            _ => Err(ClientError::BadReply { command, what: "offset, region or count" }),
        }
    }

    /// Writes `data` to the region and waits until the server has done so.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_write(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let command = Command::REGION_WRITE;
        let access = access(command, region, offset, data.len())?;
        let (reply, _) = self.call(command, &with_data(&access, data), &[])?;
        match fixed::<RegionAccess>(command, &reply)? {
            head if head == access => Ok(()),
            _ => Err(ClientError::BadReply { command, what: "offset, region or count" }),
        }
    }

    /// Writes `data` to the region and asks for no reply.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_region_write(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        let command = Command::REGION_WRITE;
        let access = access(command, region, offset, data.len())?;
        self.post_no_reply(command, &with_data(&access, data), &[])
    }

    /// Several writes of at most 8 bytes in one message, to a server that offered it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn region_write_multi(&mut self, writes: &[WriteMulti]) -> Result<(), ClientError> {
        let command = Command::REGION_WRITE_MULTI;
        let wr_cnt = writes.len() as u64;
        let mut body = WriteMultiHeader { wr_cnt }.as_bytes().to_vec();
        body.extend_from_slice(writes.as_bytes());
        let (reply, _) = self.call(command, &body, &[])?;
        match fixed::<WriteMultiHeader>(command, &reply)? {
            head if head.wr_cnt == wr_cnt => Ok(()),
            _ => Err(ClientError::BadReply { command, what: "number of writes" }),
        }
    }

    /// Resets the device and waits until it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.call(Command::DEVICE_RESET, &[], &[]).map(drop)
    }
}

fn access(
    command: Command,
    region: RegionIndex,
    offset: u64,
    len: usize,
) -> Result<RegionAccess, ClientError> {
    match u32::try_from(len) {
        Ok(count) if count <= crate::framing::MAX_DATA_XFER_SIZE => {
            Ok(RegionAccess { offset, region, count })
        }
        _ => Err(ClientError::BadRequest { command, what: "so many bytes" }),
    }
}

fn with_data(access: &RegionAccess, data: &[u8]) -> Vec<u8> {
    let mut body = access.as_bytes().to_vec();
    body.extend_from_slice(data);
    body
}

fn fixed<T: FromBytes>(command: Command, body: &[u8]) -> Result<T, ClientError> {
    match T::read_from_prefix(body) {
        Ok((value, _)) => Ok(value),
        Err(_) => Err(ClientError::BadReply { command, what: "a body below its fixed part" }),
    }
}
