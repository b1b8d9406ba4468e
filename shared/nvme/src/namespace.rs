//! A namespace of a subsystem: which block device it shows, in which format, and what is being done to it.

use ipc::layout::MAX_NAMESPACES;
use ipc::layout::controller::{NamespaceRow, namespace_flags};
use nvme_spec::ids::{Eui64, Nguid, Uuid};
use nvme_spec::{BlockCount, ControllerId, Nsid};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Logical block sizes on offer, as shifts, by LBA format index: 512 and 4096 bytes, both without metadata.
pub const LBA_FORMATS: [u32; 2] = [9, 12];

/// Write protection (feature 84h). NVMe Base 2.0c 8.16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Protection {
    /// No Write Protect.
    #[default]
    None = 0,
    /// Write Protect: outlives power cycles.
    Protected = 1,
    /// Write Protect Until Power Cycle: until no client is connected to the subsystem any more.
    UntilPowerCycle = 2,
}

/// What a namespace is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Namespace identifier, 1 to [`MAX_NAMESPACES`].
    pub nsid: Nsid,
    /// Name of the backend that owns the block device, at most 32 bytes.
    pub backend: String,
    /// Name of the block device, at most 64 bytes.
    pub bdev: String,
    /// Bytes of the block device.
    pub size: u64,
    /// Logical block size as a shift, one of [`LBA_FORMATS`].
    pub block_shift: u32,
    /// The block device cannot be written.
    pub read_only: bool,
    /// I/O goes by the ring even where the backend would grant a lease.
    pub force_ring: bool,
    /// A deallocated block reads as zeroes (DLFEAT). False if the device promises nothing.
    pub deallocated_zeroes: bool,
    /// Write protection, as it was stored.
    pub protection: Protection,
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    config: NamespaceConfig,
    pub(crate) identity: Identity,
    /// Tells the namespace from an earlier one with the same identifier.
    pub(crate) generation: u32,
    /// Controllers whose I/O has not drained yet, while a format is under way.
    pub(crate) formatting: Option<BTreeSet<ControllerId>>,
    /// Where in which trace it was asked for.
    pub(crate) asked_in: [u64; 3],
    /// The number of its pause; 0 if it is not paused.
    pub(crate) pause: u64,
}

/// The identifiers that stay the same as long as subsystem, NSID and block device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// IEEE Extended Unique Identifier, locally administered.
    pub eui64: Eui64,
    /// Namespace Globally Unique Identifier, locally administered.
    pub nguid: Nguid,
    /// UUID, version 8 (RFC 9562 5.8).
    pub uuid: Uuid,
}

impl Identity {
    /// Derives the identifiers from the subsystem's name, the namespace identifier and the block device.
    pub(crate) fn derive(nqn: &str, nsid: Nsid, bdev: &str) -> Self {
        let hash = |salt: u8| {
            let parts = [&[salt], nqn.as_bytes(), &[0], &nsid.0.to_be_bytes(), bdev.as_bytes()];
            // FNV-1a with 128 bits: stable for ever, and no attacker gains anything by a collision.
            let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
            for byte in parts.into_iter().flatten() {
                hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013B);
            }
            // The multiplication carries upwards only: fold the high half down.
            (hash ^ hash.rotate_left(64)).to_be_bytes()
        };
        let (mut uuid, mut nguid, wide) = (hash(1), hash(2), hash(3));
        uuid[6] = uuid[6] & 0x0F | 0x80;
        uuid[8] = uuid[8] & 0x3F | 0x80;
        // The OUI's two low bits: locally administered, not a group address.
        nguid[8] = nguid[8] & 0xFC | 0x02;
        let mut eui64: [u8; 8] = std::array::from_fn(|index| wide[index]);
        eui64[0] = eui64[0] & 0xFC | 0x02;
        Self { eui64: Eui64(eui64), nguid: Nguid(nguid), uuid: Uuid(uuid) }
    }
}

impl Namespace {
    pub(crate) fn new(config: NamespaceConfig, identity: Identity, generation: u32) -> Self {
        Self { config, identity, generation, formatting: None, asked_in: [0; 3], pause: 0 }
    }

    /// What the namespace is made of, format and protection as they are now.
    pub fn config(&self) -> &NamespaceConfig {
        &self.config
    }

    pub(crate) fn config_mut(&mut self) -> &mut NamespaceConfig {
        &mut self.config
    }

    /// Size in logical blocks; a remainder of the block device smaller than a block is not used.
    pub fn blocks(&self) -> BlockCount {
        BlockCount(self.config.size.checked_shr(self.config.block_shift).unwrap_or(0))
    }

    /// Index of the LBA format in use.
    pub fn lba_format(&self) -> usize {
        LBA_FORMATS.iter().position(|&shift| shift == self.config.block_shift).unwrap_or(0)
    }

    /// Whether every write is refused, for whatever reason.
    pub fn is_write_protected(&self) -> bool {
        self.config.read_only || self.config.protection != Protection::None
    }

    /// The state that feature 84h reports.
    pub(crate) fn protection(&self) -> Protection {
        match (self.config.read_only, self.config.protection) {
            (true, Protection::None) => Protection::Protected,
            (_, protection) => protection,
        }
    }

    pub(crate) fn flags(&self) -> u32 {
        let flag = |set, flag| if set { flag } else { 0 };
        flag(self.is_write_protected(), namespace_flags::WRITE_PROTECTED)
            | flag(self.formatting.is_some(), namespace_flags::FORMATTING)
            | flag(self.config.force_ring, namespace_flags::FORCE_RING)
    }
}

/// Writes `namespace` to its row. A reader looks again when the version is raised afterwards.
pub(crate) fn store_row(row: &NamespaceRow, namespace: Option<&Namespace>) {
    let Some(namespace) = namespace else {
        // Release: pairs with the worker's Acquire of the state.
        row.state.store(0, Ordering::Release);
        return;
    };
    let config = namespace.config();
    if row.generation.load(Ordering::Relaxed) != namespace.generation {
        // The row shows another namespace: none at all while its names change.
        row.state.store(0, Ordering::Release);
        row.backend.store(&config.backend);
        row.bdev.store(&config.bdev);
        row.generation.store(namespace.generation, Ordering::Relaxed);
        for (word, value) in row.asked_in.iter().zip(namespace.asked_in) {
            word.store(value, Ordering::Relaxed);
        }
    }
    row.block_shift.store(config.block_shift, Ordering::Relaxed);
    row.blocks.store(namespace.blocks().0, Ordering::Relaxed);
    row.flags.store(namespace.flags(), Ordering::Relaxed);
    row.pause_number.store(namespace.pause, Ordering::Relaxed);
    // Release: pairs with the worker's Acquire of the state.
    row.state.store(1, Ordering::Release);
}

/// Index of a namespace in every table, if the identifier is one that a namespace here can have.
pub(crate) fn index_of(nsid: Nsid) -> Option<usize> {
    let index = usize::try_from(nsid.0).ok()?.checked_sub(1)?;
    (index < MAX_NAMESPACES).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::Identity;
    use nvme_spec::Nsid;

    #[test]
    fn identity_is_stable_and_differs_by_subsystem_namespace_and_device() {
        let of = |nqn, nsid, bdev| Identity::derive(nqn, Nsid(nsid), bdev);
        let first = of("nqn.a", 1, "mem0");
        assert_eq!(first, of("nqn.a", 1, "mem0"));
        for other in [of("nqn.b", 1, "mem0"), of("nqn.a", 2, "mem0"), of("nqn.a", 1, "mem1")] {
            assert_ne!(first.uuid, other.uuid);
            assert_ne!(first.nguid, other.nguid);
            assert_ne!(first.eui64, other.eui64);
        }
        assert_eq!(first.uuid.0[6] >> 4, 8, "version 8");
        assert_eq!(first.uuid.0[8] >> 6, 2, "variant of RFC 9562");
        assert_eq!(first.nguid.0[8] & 3, 2, "locally administered");
        assert_eq!(first.eui64.0[0] & 3, 2, "locally administered");
    }
}
