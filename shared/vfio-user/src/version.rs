//! Version negotiation: the VERSION message and its JSON capabilities.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use crate::message::VersionBody;
use crate::{Errno, framing};

/// The only major version there is.
pub const MAJOR: u16 = 0;
/// The highest minor version this crate speaks; a client that proposes less gets that.
pub const MINOR: u16 = 1;
/// Most DMA mappings at a time: the protocol's default, and the size of the DMA table.
pub const MAX_DMA_MAPS: u32 = 65_535;
/// Page sizes of DMA mappings, or'ed together: 4 KiB, which covers its multiples.
pub const PAGE_SIZES: u64 = 4096;
/// Longest JSON accepted, in bytes. Real clients send below 300.
pub const MAX_JSON: usize = 16 * 1024;

/// Descriptors that a client takes in one message if it does not say.
const DEFAULT_MAX_MSG_FDS: u64 = 1;

/// Capabilities as either end sends them; what is absent has the protocol's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Most descriptors the sender takes in one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u64>,
    /// Largest data transfer the sender takes, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// Most DMA mappings at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of DMA mappings, or'ed together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// Whether REGION_WRITE_MULTI is understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

/// What a client proposed in its VERSION message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Its capabilities.
    pub capabilities: Capabilities,
}

impl Proposal {
    /// Reads the body of a VERSION message or of its reply. No JSON, or none but its NUL, is no
    /// capabilities.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for a body below 4 bytes, JSON without its NUL, above [`MAX_JSON`], or
    /// that is not what the protocol says.
    pub fn parse(body: &[u8]) -> Result<Self, Errno> {
        let (version, json) = VersionBody::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        let capabilities = match json.split_last() {
            None | Some((0, [])) => Capabilities::default(),
            Some((0, text)) if text.len() <= MAX_JSON => {
                let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
                let data: VersionData = serde_json::from_slice(text).map_err(|_| Errno::EINVAL)?;
                data.capabilities
            }
            Some(_) => return Err(Errno::EINVAL),
        };
        Ok(Self { major: version.major, minor: version.minor, capabilities })
    }

    /// The body of a VERSION message, with JSON and its closing NUL.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = VersionBody { major: self.major, minor: self.minor }.as_bytes().to_vec();
        let data = VersionData { capabilities: self.capabilities.clone() };
        let json = serde_json::to_vec(&data).expect("numbers and booleans serialize");
        body.extend_from_slice(&json);
        body.push(0);
        body
    }
}

/// What a server takes; the VERSION reply announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest data transfer, in bytes, at most [`framing::MAX_DATA_XFER_SIZE`].
    pub max_data_xfer_size: u32,
    /// Most DMA mappings at a time.
    pub max_dma_maps: u32,
    /// Page sizes of DMA mappings, or'ed together.
    pub page_sizes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_data_xfer_size: framing::MAX_DATA_XFER_SIZE,
            max_dma_maps: MAX_DMA_MAPS,
            page_sizes: PAGE_SIZES,
        }
    }
}

/// What was agreed with a client. Plain numbers, so that a server can keep it for a successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Minor version, at most the client's.
    pub minor: u16,
    /// Whether REGION_WRITE_MULTI may be used.
    pub write_multiple: bool,
    /// Most descriptors the client takes in one message.
    pub client_max_msg_fds: u16,
    /// Largest transfer that the client takes in DMA_READ and DMA_WRITE, in bytes.
    pub client_max_data_xfer_size: u32,
}

impl Negotiated {
    /// What a server agrees to.
    ///
    /// # Errors
    /// [`Errno::EINVAL`] for another major version, or page sizes of less than 4 KiB.
    pub fn agree(proposal: &Proposal) -> Result<Self, Errno> {
        let capabilities = &proposal.capabilities;
        if proposal.major != MAJOR || capabilities.pgsizes.is_some_and(|sizes| sizes < 4096) {
            return Err(Errno::EINVAL);
        }
        let fds = capabilities.max_msg_fds.unwrap_or(DEFAULT_MAX_MSG_FDS);
        let transfer =
            capabilities.max_data_xfer_size.unwrap_or(framing::MAX_DATA_XFER_SIZE.into());
        Ok(Self {
            minor: proposal.minor.min(MINOR),
            write_multiple: capabilities.write_multiple == Some(true),
            client_max_msg_fds: u16::try_from(fds).unwrap_or(u16::MAX),
            client_max_data_xfer_size: u32::try_from(transfer).unwrap_or(u32::MAX),
        })
    }

    /// The body of the server's VERSION reply.
    #[must_use]
    pub fn reply_body(&self, limits: &Limits) -> Vec<u8> {
        let capabilities = Capabilities {
            max_msg_fds: Some(framing::MAX_MSG_FDS as u64),
            max_data_xfer_size: Some(limits.max_data_xfer_size.into()),
            max_dma_maps: Some(limits.max_dma_maps.into()),
            pgsizes: Some(limits.page_sizes),
            write_multiple: self.write_multiple.then_some(true),
        };
        Proposal { major: MAJOR, minor: self.minor, capabilities }.encode()
    }
}
