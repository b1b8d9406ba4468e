//! Messages: the header that stands before each, the commands, and their bodies.
//!
//! All fields are in the host's byte order: both ends are on one host. Sizes are in bytes.

mod body;

pub use body::{
    CapabilityHeader, DeviceInfo, DmaAccess, DmaMapBody, DmaUnmapBody, DmaUnmapFlags, IrqInfo,
    IrqSet, RegionAccess, RegionInfo, RegionIoFds, SparseMmapArea, SparseMmapCapability,
    VersionBody, WriteMulti, WriteMultiHeader,
};

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a message's header.
pub const HEADER_SIZE: usize = 16;

/// The `Type` bits of a command.
pub const TYPE_COMMAND: u8 = 0;
/// The `Type` bits of a reply.
pub const TYPE_REPLY: u8 = 1;

/// A command number; unknown ones are data.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Command(pub u16);

impl Command {
    /// Proposes a version and capabilities; the first message.
    pub const VERSION: Self = Self(1);
    /// Offers a range of client memory.
    pub const DMA_MAP: Self = Self(2);
    /// Takes a range back.
    pub const DMA_UNMAP: Self = Self(3);
    /// Asks for the numbers of regions and interrupt types.
    pub const DEVICE_GET_INFO: Self = Self(4);
    /// Asks for one region.
    pub const DEVICE_GET_REGION_INFO: Self = Self(5);
    /// Asks for descriptors that stand for parts of a region.
    pub const DEVICE_GET_REGION_IO_FDS: Self = Self(6);
    /// Asks for one interrupt type.
    pub const DEVICE_GET_IRQ_INFO: Self = Self(7);
    /// Configures or fires interrupts.
    pub const DEVICE_SET_IRQS: Self = Self(8);
    /// Reads from a region.
    pub const REGION_READ: Self = Self(9);
    /// Writes to a region.
    pub const REGION_WRITE: Self = Self(10);
    /// Server to client: reads client memory.
    pub const DMA_READ: Self = Self(11);
    /// Server to client: writes client memory.
    pub const DMA_WRITE: Self = Self(12);
    /// Resets the device.
    pub const DEVICE_RESET: Self = Self(13);
    /// Dirty page log of protocol versions before 0.1 as published; not served.
    pub const DIRTY_PAGES: Self = Self(14);
    /// Several small region writes in one message.
    pub const REGION_WRITE_MULTI: Self = Self(15);
    /// Gets, sets or probes a feature.
    pub const DEVICE_FEATURE: Self = Self(16);
    /// Reads migration data.
    pub const MIG_DATA_READ: Self = Self(17);
    /// Writes migration data.
    pub const MIG_DATA_WRITE: Self = Self(18);
}

/// Flags of a header.
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HeaderFlags {
    /// [`TYPE_COMMAND`] or [`TYPE_REPLY`]; unknown values are data.
    #[bits(4)]
    pub message_type: u8,
    /// Of a command: no reply is wanted, not even an error.
    pub no_reply: bool,
    /// Of a reply: the command failed, `error` holds the number.
    pub error: bool,
    #[bits(26)]
    __: u32,
}

/// The header in front of every message.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Belongs to the sender, may repeat, is echoed in the reply. Nothing may be keyed on it.
    pub id: u16,
    /// What is asked; a reply repeats it.
    pub command: Command,
    /// Bytes of the whole message, this header included.
    pub size: u32,
    /// Type, no-reply, error.
    pub flags: HeaderFlags,
    /// The error number of a failed reply; reserved in a command.
    pub error: u32,
}

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);

impl Header {
    /// Reads a header from its 16 bytes; `None` if there are fewer. Whether the size can be
    /// believed is for [`crate::framing::check`] to say.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// A command's header, for a body of `body_len` bytes.
    ///
    /// # Panics
    /// If the body is larger than a message may ever be; the caller bounds it.
    #[must_use]
    pub fn command(id: u16, command: Command, body_len: usize) -> Self {
        let flags = HeaderFlags::new().with_message_type(TYPE_COMMAND);
        Self { id, command, size: message_size(body_len), flags, error: 0 }
    }

    /// The header of a successful reply to `self`, for a body of `body_len` bytes.
    ///
    /// # Panics
    /// As [`Header::command`].
    #[must_use]
    pub fn reply(&self, body_len: usize) -> Self {
        let flags = HeaderFlags::new().with_message_type(TYPE_REPLY);
        Self { id: self.id, command: self.command, size: message_size(body_len), flags, error: 0 }
    }

    /// The whole of an error reply to `self`: a header alone.
    #[must_use]
    pub fn error_reply(&self, errno: crate::Errno) -> Self {
        let flags = HeaderFlags::new().with_message_type(TYPE_REPLY).with_error(true);
        Self { flags, error: errno.0, ..self.reply(0) }
    }

    /// Whether this is a command.
    #[must_use]
    pub fn is_command(&self) -> bool {
        self.flags.message_type() == TYPE_COMMAND
    }

    /// Whether this is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.flags.message_type() == TYPE_REPLY
    }

    /// The message: this header, then `body`.
    #[must_use]
    pub fn with_body(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + body.len());
        bytes.extend_from_slice(self.as_bytes());
        bytes.extend_from_slice(body);
        bytes
    }
}

fn message_size(body_len: usize) -> u32 {
    u32::try_from(HEADER_SIZE + body_len).expect("bodies are bounded by the framing limit")
}
