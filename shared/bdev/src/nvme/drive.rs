//! What must be known of a drive's namespace to make commands for it. NVMe Base 2.0c 5.17.2, NVM Command Set 1.0c 4.1.5.

use crate::error::{Error, ErrorKind};
use nvme_driver::{Controller, Namespace};
use nvme_spec::identify::command_set::NvmController;
use nvme_spec::identify::{Cns, CommandSet};
use nvme_spec::{ControllerId, Nsid};

/// Unit of CRDT1 to CRDT3, in nanoseconds.
const RETRY_UNIT: u64 = 100_000_000;
/// Most blocks of one command: NLB is 16 bits, 0's based.
pub(super) const BLOCKS_MAX: u64 = 1 << 16;
/// Largest logical block that is served: a namespace of ours has no larger one.
const BLOCK_MAX: u64 = 4096;

/// A namespace of a drive. All lengths are bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drive {
    pub nsid: Nsid,
    /// Base two logarithm of the logical block.
    pub block_shift: u32,
    pub size: u64,
    pub writable: bool,
    /// Memory page as PRP entries count it.
    pub page: u64,
    /// Most data of one command.
    pub data_max: u64,
    /// No command crosses a multiple of this; 0: none.
    pub boundary: u64,
    /// Most of one Write Zeroes; 0: the drive has none.
    pub zeroes_max: u64,
    /// Write Zeroes may give the space back.
    pub zeroes_deallocate: bool,
    /// Most of one Verify; 0: the drive has none.
    pub verify_max: u64,
    /// Compare is there.
    pub compare: bool,
    /// There is a cache to be flushed.
    pub volatile_cache: bool,
    /// How long to wait before a command is sent again, by CRD; nanoseconds.
    pub delays: [u64; 4],
}

impl Drive {
    /// Asks the controller.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a namespace that is not there or not of a kind that is served, others as the
    /// controller answers.
    pub fn ask(controller: &Controller, nsid: Nsid) -> Result<Self, Error> {
        let failed = |error: nvme_driver::Error| refused(controller.address(), error);
        let namespace = controller.namespace(nsid).map_err(failed)?;
        let block = u64::from(namespace.block_size());
        if block > BLOCK_MAX {
            let what = format!("namespace {} has blocks of {block} bytes, at most 4096 do", nsid.0);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let limits = controller.identify_as::<NvmController>(
            Cns::COMMAND_SET_CONTROLLER,
            Nsid::NONE,
            ControllerId(0),
            CommandSet::NVM,
        );
        let limits = match limits {
            Ok(limits) => Some((limits.wzsl, limits.vsl)),
            // Controllers before version 2.0 do not have it.
            Err(nvme_driver::Error::Command { .. }) => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self::new(controller, &namespace, limits))
    }

    fn new(controller: &Controller, namespace: &Namespace, limits: Option<(u8, u8)>) -> Self {
        let (controller_says, says) = (controller.identify(), namespace.identify());
        let oncs = controller_says.oncs;
        let block = u64::from(namespace.block_size());
        let data_max = namespace.max_transfer();
        let page_shift = u32::from(controller.capabilities().mpsmin()) + 12;
        // Without a limit of its own a command without data is held to that of those with data.
        let limit = |power: Option<u8>| match power {
            Some(0) => BLOCKS_MAX * block,
            Some(power) => 1_u64
                .checked_shl(u32::from(power) + page_shift)
                .map_or(BLOCKS_MAX * block, |bytes| bytes.clamp(block, BLOCKS_MAX * block)),
            None => data_max,
        };
        let offered = |there: bool, most: u64| if there { most } else { 0 };
        let delay = |units: u16| u64::from(units) * RETRY_UNIT;
        Self {
            nsid: namespace.nsid(),
            block_shift: block.trailing_zeros(),
            size: namespace.bytes(),
            writable: namespace.is_writable(),
            page: controller.page_size(),
            data_max,
            boundary: u64::from(says.noiob) * block,
            zeroes_max: offered(oncs.write_zeroes(), limit(limits.map(|limits| limits.0))),
            zeroes_deallocate: says.dlfeat.write_zeroes(),
            verify_max: offered(oncs.verify(), limit(limits.map(|limits| limits.1))),
            compare: oncs.compare(),
            volatile_cache: controller_says.vwc.present(),
            delays: [
                0,
                delay(controller_says.crdt1),
                delay(controller_says.crdt2),
                delay(controller_says.crdt3),
            ],
        }
    }

    /// Bytes of a logical block.
    pub fn block(&self) -> u64 {
        1 << self.block_shift
    }

    /// Most bytes of a command with data that starts at `offset` when `left` are to come: at least a block if `left`
    /// is.
    pub fn data_piece(&self, offset: u64, left: u64) -> u64 {
        let most = left.min(self.data_max);
        match self.boundary {
            0 => most,
            boundary => most.min(boundary - offset % boundary),
        }
    }
}

/// An error of the driver's.
pub(super) fn refused(address: &str, error: nvme_driver::Error) -> Error {
    use nvme_driver::Error as Driver;
    let kind = match &error {
        Driver::NoNamespace { .. } | Driver::Unsupported { .. } | Driver::Argument { .. } => {
            ErrorKind::Invalid
        }
        Driver::Gone | Driver::Fatal | Driver::TimedOut { .. } | Driver::Transport(_) => {
            ErrorKind::Gone
        }
        Driver::NoQueue { .. } | Driver::AdminFull | Driver::Memory(_) => ErrorKind::Busy,
        _ => ErrorKind::Internal,
    };
    Error { kind, what: format!("drive {address}"), source: Some(Box::new(error)) }
}

/// Why a drive cannot be reached.
pub(super) fn unreachable(address: &str, error: nvme_driver::ConnectError) -> Error {
    use nvme_driver::ConnectError as Connect;
    let kind = match &error {
        Connect::GroupBusy { .. } | Connect::Closed { .. } | Connect::NotAnswering { .. } => {
            ErrorKind::Busy
        }
        Connect::NoSocket { .. } | Connect::NotListening { .. } | Connect::NoDevice { .. } => {
            ErrorKind::Gone
        }
        _ => ErrorKind::Invalid,
    };
    Error { kind, what: format!("drive {address}"), source: Some(Box::new(error)) }
}

/// Whether a drive could not be opened because a process has it, which may be a predecessor's worker: the drive may still
/// be at work on what was asked of it.
#[must_use]
pub fn is_held(error: &Error) -> bool {
    use nvme_driver::ConnectError as Connect;
    let source = error.source.as_deref().and_then(|source| source.downcast_ref());
    matches!(source, Some(Connect::GroupBusy { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_that_a_process_has_is_told_from_one_that_is_not_there() {
        use nvme_driver::ConnectError as Connect;
        let held =
            unreachable("pcie:0000:01:00.0", Connect::GroupBusy { path: "/dev/vfio/7".into() });
        assert!(is_held(&held) && held.kind == ErrorKind::Busy);
        let path = "/run/vireo/vm0/cntrl".into();
        let gone = unreachable("vfio-user:/run/vireo/vm0", Connect::NoSocket { path });
        assert!(!is_held(&gone) && gone.kind == ErrorKind::Gone);
        assert!(!is_held(&Error::new(ErrorKind::Busy, "no queue pair is left")));
    }

    #[test]
    fn commands_end_at_the_boundary_that_the_drive_prefers() {
        let drive = Drive {
            nsid: Nsid(1),
            block_shift: 9,
            size: 1 << 40,
            writable: true,
            page: 4096,
            data_max: 1 << 20,
            boundary: 384 << 10,
            zeroes_max: 0,
            zeroes_deallocate: false,
            verify_max: 0,
            compare: false,
            volatile_cache: true,
            delays: [0; 4],
        };
        let cut = |drive: &Drive, mut at: u64, mut left: u64| {
            let mut pieces = Vec::new();
            while left > 0 {
                let piece = drive.data_piece(at, left);
                pieces.push(piece >> 10);
                at += piece;
                left -= piece;
            }
            pieces
        };
        assert_eq!(cut(&drive, 128 << 10, 1 << 20), [256, 384, 384]);
        assert_eq!(cut(&Drive { boundary: 0, ..drive }, 5 << 9, 2 << 20), [1024, 1024]);
        assert_eq!(cut(&Drive { data_max: 4096, ..drive }, 380 << 10, 8192), [4, 4]);
    }
}
