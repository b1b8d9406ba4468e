//! DMA: mappings that a client offers, and the messages by which a server reads and writes
//! client memory that it cannot map.
//!
//! The table of mappings is not here; this is what a message says of one.

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use crate::message::DmaAccess;
use crate::message::{Command, DmaMapBody, DmaUnmapBody, Header};
use crate::{Errno, framing};

/// An I/O virtual address: an address as the device sees client memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Iova(pub u64);

/// A range of client memory that the device may use from now on.
#[derive(Debug)]
pub struct DmaMap {
    /// First address.
    pub iova: Iova,
    /// Bytes; never 0, and `iova + size - 1` does not overflow.
    pub size: u64,
    /// Where in the descriptor the range begins, in bytes; `offset + size` does not overflow.
    pub offset: u64,
    /// What the device may do with it.
    pub access: DmaAccess,
    /// The memory. Without one, the range exists and DMA to it fails.
    pub fd: Option<OwnedFd>,
}

impl DmaMap {
    /// The mapping that a message asks for.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for a body of another size, reserved flags, an empty range, a range
    /// past the end of the address space or of any file, and more than one descriptor.
    pub fn parse(body: &[u8], fds: Vec<OwnedFd>) -> Result<Self, Errno> {
        let map = DmaMapBody::read_from_bytes(body).map_err(|_| Errno::EINVAL)?;
        let fits = map.size.checked_sub(1).is_some_and(|last| {
            map.address.checked_add(last).is_some() && map.offset.checked_add(map.size).is_some()
        });
        if (map.argsz as usize) < size_of::<DmaMapBody>()
            || map.flags.reserved() != 0
            || !fits
            || fds.len() > 1
        {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            iova: Iova(map.address),
            size: map.size,
            offset: map.offset,
            access: map.flags,
            fd: fds.into_iter().next(),
        })
    }
}

/// Memory that the device must not touch any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaUnmap {
    /// One mapping, by its exact address and size.
    Exact {
        /// First address, as mapped.
        iova: Iova,
        /// Bytes, as mapped.
        size: u64,
    },
    /// Every mapping there is.
    All,
}

impl DmaUnmap {
    /// What a DMA_UNMAP message's body asks for.
    ///
    /// # Errors
    /// [`Errno::ENOTSUP`] if a dirty bitmap is asked for, [`Errno::EINVAL`] for reserved flags,
    /// and for "all" with an address or a size.
    pub fn parse(body: &DmaUnmapBody) -> Result<Self, Errno> {
        if body.flags.get_dirty_bitmap() {
            return Err(Errno::ENOTSUP);
        }
        if body.flags.reserved() != 0 {
            return Err(Errno::EINVAL);
        }
        match (body.flags.all(), body.address, body.size) {
            (true, 0, 0) => Ok(Self::All),
            (true, ..) => Err(Errno::EINVAL),
            (false, address, size) => Ok(Self::Exact { iova: Iova(address), size }),
        }
    }
}

/// Body of DMA_READ and DMA_WRITE and of their replies, in front of any data.
///
/// The published text gives the count of a DMA_WRITE reply 4 bytes, everything else 8; some
/// releases of QEMU have 4 everywhere and no padding. [`parse_reply`] takes all of them.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaAccessBody {
    /// First address.
    pub address: u64,
    /// Bytes of data.
    pub count: u64,
}

const _: () = assert!(size_of::<DmaAccessBody>() == 16);

/// Bytes of the same structure with a count of 4 bytes.
const SHORT_BODY: usize = 12;

/// What a server asks of the client's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DmaRequest {
    /// Read `count` bytes at `iova`.
    Read {
        /// First address.
        iova: Iova,
        /// Bytes, at most the transfer limit.
        count: u32,
    },
    /// Write the data at `iova`.
    Write {
        /// First address.
        iova: Iova,
        /// The bytes.
        data: Vec<u8>,
    },
}

impl DmaRequest {
    /// The request as a message.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] if it is larger than `limit`, the client's `max_data_xfer_size`, or
    /// than [`framing::MAX_DATA_XFER_SIZE`].
    pub fn encode(&self, id: u16, limit: u32) -> Result<Vec<u8>, Errno> {
        let (command, iova, count, data): (_, _, _, &[u8]) = match self {
            Self::Read { iova, count } => (Command::DMA_READ, iova, *count as usize, &[]),
            Self::Write { iova, data } => (Command::DMA_WRITE, iova, data.len(), data),
        };
        if count > limit.min(framing::MAX_DATA_XFER_SIZE) as usize {
            return Err(Errno::EINVAL);
        }
        let head = DmaAccessBody { address: iova.0, count: count as u64 };
        let mut body = head.as_bytes().to_vec();
        body.extend_from_slice(data);
        Ok(Header::command(id, command, body.len()).with_body(&body))
    }

    /// The request that a client received.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] if the body's size does not agree with its count, or the count is past
    /// [`framing::MAX_DATA_XFER_SIZE`]; [`Errno::ENOTSUP`] for any other command.
    pub fn parse(command: Command, body: &[u8]) -> Result<Self, Errno> {
        let (head, data) = DmaAccessBody::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        let count = u32::try_from(head.count).map_err(|_| Errno::EINVAL)?;
        if count > framing::MAX_DATA_XFER_SIZE {
            return Err(Errno::EINVAL);
        }
        let iova = Iova(head.address);
        match command {
            Command::DMA_READ if data.is_empty() => Ok(Self::Read { iova, count }),
            Command::DMA_WRITE if data.len() == count as usize => {
                Ok(Self::Write { iova, data: data.to_vec() })
            }
            Command::DMA_READ | Command::DMA_WRITE => Err(Errno::EINVAL),
            _ => Err(Errno::ENOTSUP),
        }
    }

    /// Body of the successful reply: `data` is what a read found, and empty for a write.
    #[must_use]
    pub fn reply_body(&self, data: &[u8]) -> Vec<u8> {
        let (iova, count) = match self {
            Self::Read { iova, .. } => (iova, data.len()),
            Self::Write { iova, data } => (iova, data.len()),
        };
        let mut body = DmaAccessBody { address: iova.0, count: count as u64 }.as_bytes().to_vec();
        if let Self::Read { .. } = self {
            body.extend_from_slice(data);
        } else {
            body.truncate(SHORT_BODY);
        }
        body
    }
}

/// What a client answered to `request`: the bytes of a read, nothing for a write.
///
/// # Errors
/// The number that the client sent, or [`Errno::EINVAL`] if the reply does not fit the request.
pub fn parse_reply(request: &DmaRequest, header: &Header, body: &[u8]) -> Result<Vec<u8>, Errno> {
    if header.flags.error() {
        return Err(Errno(header.error));
    }
    let (command, iova, wanted, data_len) = match request {
        DmaRequest::Read { iova, count } => (Command::DMA_READ, iova, *count, *count as usize),
        DmaRequest::Write { iova, data } => (Command::DMA_WRITE, iova, data.len() as u32, 0),
    };
    let head_len = body.len().checked_sub(data_len).ok_or(Errno::EINVAL)?;
    let full = size_of::<DmaAccessBody>();
    let address = u64::read_from_prefix(body).map_err(|_| Errno::EINVAL)?.0;
    let count = body.get(8..).and_then(|rest| u32::read_from_prefix(rest).ok());
    if header.command != command
        || address != iova.0
        || count.map(|(count, _)| count) != Some(wanted)
        || (head_len != full && head_len != SHORT_BODY)
    {
        return Err(Errno::EINVAL);
    }
    Ok(body[head_len..].to_vec())
}
