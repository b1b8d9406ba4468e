//! A namespace as a caller of I/O needs to know it. NVM Command Set 1.0c 4.1.5.1.

use std::sync::Arc;

use nvme_spec::identify::descriptor::NamespaceIdentifiers;
use nvme_spec::identify::namespace::IdentifyNamespace;
use nvme_spec::{BlockCount, Nsid};

use crate::error::Error;
use crate::split::Limits;

/// Smallest and greatest block size, as powers of two: what the specification allows, and what any drive has.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u8> = 9..=16;

/// An active namespace, as it was when it was asked for. Formats, growth and write protection that come later are
/// announced by an event ([`crate::Controller::next_event`]); ask for it again then.
#[derive(Debug, Clone)]
pub struct Namespace {
    nsid: Nsid,
    pub(crate) limits: Limits,
    writable: bool,
    identify: Arc<IdentifyNamespace>,
    identifiers: NamespaceIdentifiers,
}

impl Namespace {
    /// Reads the structures. `data_bytes` bounds one command's data.
    pub(crate) fn new(
        nsid: Nsid,
        identify: IdentifyNamespace,
        identifiers: NamespaceIdentifiers,
        data_bytes: u64,
    ) -> Result<Self, Error> {
        let formats = usize::from(identify.nlbaf_z) + 1 + usize::from(identify.nulbaf);
        let format = identify.lbaf.get(identify.flbas.index(formats)).copied().unwrap_or_default();
        if !BLOCK_SHIFTS.contains(&format.lbads()) {
            let found = format!("namespace {} with LBADS {}", nsid.0, format.lbads());
            return Err(Error::Unsupported { found, supported: "blocks of 512 bytes to 64 KiB" });
        }
        if format.ms() != 0 {
            let (nsid, bytes) = (nsid.0, format.ms());
            let found = format!("namespace {nsid} with {bytes} bytes of metadata a block");
            return Err(Error::Unsupported { found, supported: "formats without metadata" });
        }
        let blocks = (data_bytes >> format.lbads()).clamp(1, crate::split::BLOCKS_MAX.into());
        let limits = Limits {
            block_shift: format.lbads().into(),
            // At most 65,536.
            data_blocks: blocks as u32,
            boundary: identify.noiob.into(),
        };
        let writable = !identify.nsattr.write_protected();
        Ok(Self { nsid, limits, writable, identify: Arc::new(identify), identifiers })
    }

    /// Namespace Identifier.
    #[must_use]
    pub fn nsid(&self) -> Nsid {
        self.nsid
    }

    /// Size in logical blocks (NSZE).
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.identify.nsze
    }

    /// Bytes of a logical block, a power of two.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1 << self.limits.block_shift
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.identify.nsze.0.saturating_mul(self.block_size().into())
    }

    /// Most bytes that go as one command; a larger request is split.
    #[must_use]
    pub fn max_transfer(&self) -> u64 {
        u64::from(self.limits.data_blocks) << self.limits.block_shift
    }

    /// Whether it may be written: it is not write protected. Requests that write are refused otherwise.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Everything that the controller said (CNS 00h).
    #[must_use]
    pub fn identify(&self) -> &IdentifyNamespace {
        &self.identify
    }

    /// Its lasting identifiers (CNS 03h).
    #[must_use]
    pub fn identifiers(&self) -> &NamespaceIdentifiers {
        &self.identifiers
    }
}
