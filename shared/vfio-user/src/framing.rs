//! Framing: whether a header's size can be believed. Checked once, before anything is allocated.
//!
//! A message whose size field is out of bounds leaves the stream without a next message
//! boundary: the connection is closed. Everything else that may be wrong with a message is wrong
//! within its own `size` bytes, and is answered.

use crate::message::{HEADER_SIZE, Header};

/// Largest `count` of a data transfer, in bytes: what the VERSION reply announces as
/// `max_data_xfer_size`, and the protocol's default.
pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;

/// Most file descriptors accepted with one message, announced as `max_msg_fds`. QEMU refuses a
/// server that announces more; cloud-hypervisor sends this many whatever is announced.
pub const MAX_MSG_FDS: usize = 16;

/// Room for the largest fixed body in front of data, rounded up generously.
const BODY_ROOM: usize = 4096;

/// Largest message that is accepted, in bytes, header included: a full data transfer and the
/// structure in front of it.
pub const MAX_MESSAGE_SIZE: usize = HEADER_SIZE + BODY_ROOM + MAX_DATA_XFER_SIZE as usize;

const _: () = assert!(BODY_ROOM >= 32, "every fixed body in front of data fits");

/// The stream cannot be followed any further: close the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The size field does not even cover the header.
    #[error("message size {size} of command {command} is below the header's {HEADER_SIZE}")]
    TooSmall {
        /// The size field, in bytes.
        size: u32,
        /// The command field.
        command: u16,
    },
    /// The size field is past what this end accepts.
    #[error("message size {size} of command {command} is above the limit of {MAX_MESSAGE_SIZE}")]
    TooLarge {
        /// The size field, in bytes.
        size: u32,
        /// The command field.
        command: u16,
    },
}

/// Checks the header's size and returns it: the bytes of the whole message, header included.
///
/// # Errors
/// [`FramingError`] if the size is below the header's or above [`MAX_MESSAGE_SIZE`].
pub fn check(header: &Header) -> Result<usize, FramingError> {
    let (size, command) = (header.size, header.command.0);
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    if bytes < HEADER_SIZE {
        Err(FramingError::TooSmall { size, command })
    } else if bytes > MAX_MESSAGE_SIZE {
        Err(FramingError::TooLarge { size, command })
    } else {
        Ok(bytes)
    }
}
