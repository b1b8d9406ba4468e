//! Whether and when a failed command is tried again. NVMe Base 2.0c 3.3.3.2.1 (DNR, CRD), 5.17.2.1 (CRDT1 to CRDT3).

use std::time::Duration;

use nvme_spec::Status;
use nvme_spec::identify::controller::IdentifyController;

/// Unit of CRDT1 to CRDT3.
const UNIT: Duration = Duration::from_millis(100);

/// The delays that Command Retry Delay (CRD) chooses from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RetryDelays([u16; 3]);

impl RetryDelays {
    pub(crate) fn of(identify: &IdentifyController) -> Self {
        Self([identify.crdt1, identify.crdt2, identify.crdt3])
    }

    /// Whether the controller knows delays at all.
    pub(crate) fn any(&self) -> bool {
        self.0 != [0; 3]
    }

    /// How long to wait before a command that ended with `status` is sent again.
    pub(crate) fn delay(&self, status: Status) -> Duration {
        match usize::from(status.crd()).checked_sub(1) {
            Some(index) => UNIT * u32::from(self.0.get(index).copied().unwrap_or(0)),
            None => Duration::ZERO,
        }
    }
}

/// Whether trying again can help: Do Not Retry is clear, and the status is not the command's proper result.
pub(crate) fn retryable(status: Status) -> bool {
    let code = status.code();
    !status.dnr()
        && ![
            Status::SUCCESS,
            Status::COMPARE_FAILURE,
            Status::ABORT_REQUESTED,
            Status::ABORTED_SQ_DELETION,
            Status::ABORTED_FAILED_FUSED,
            Status::ABORTED_MISSING_FUSED,
        ]
        .contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_help_is_tried_again() {
        assert!(retryable(Status::INTERNAL_ERROR));
        assert!(retryable(Status::COMMAND_INTERRUPTED.with_crd(1)));
        assert!(!retryable(Status::INTERNAL_ERROR.with_dnr()));
        assert!(!retryable(Status::COMPARE_FAILURE));
        assert!(!retryable(Status::ABORT_REQUESTED));
    }

    #[test]
    fn the_delay_is_the_one_that_the_status_chooses() {
        let mut identify = IdentifyController::zeroed();
        (identify.crdt1, identify.crdt2, identify.crdt3) = (1, 20, 0xFFFF);
        let delays = RetryDelays::of(&identify);
        assert_eq!(delays.delay(Status::NAMESPACE_NOT_READY), Duration::ZERO);
        assert_eq!(
            delays.delay(Status::NAMESPACE_NOT_READY.with_crd(1)),
            Duration::from_millis(100)
        );
        assert_eq!(delays.delay(Status::NAMESPACE_NOT_READY.with_crd(2)), Duration::from_secs(2));
    }
}
