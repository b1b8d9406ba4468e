//! What a drive's status means to whoever asked.

use crate::error::ErrorKind;
use nvme_spec::Status;
use nvme_spec::status::StatusCodeType;

/// The kind of error that a status other than success amounts to.
pub(super) fn kind(status: Status) -> ErrorKind {
    match status.code() {
        Status::LBA_OUT_OF_RANGE => ErrorKind::OutOfRange,
        Status::CAPACITY_EXCEEDED => ErrorKind::NoSpace,
        Status::COMPARE_FAILURE => ErrorKind::CompareFailed,
        Status::NAMESPACE_WRITE_PROTECTED | Status::WRITE_TO_READ_ONLY_RANGE => ErrorKind::ReadOnly,
        Status::INVALID_OPCODE => ErrorKind::Unsupported,
        Status::DATA_TRANSFER_ERROR => ErrorKind::Fault,
        Status::INVALID_NAMESPACE_OR_FORMAT => ErrorKind::Gone,
        Status::NAMESPACE_NOT_READY
        | Status::COMMAND_INTERRUPTED
        | Status::TRANSIENT_TRANSPORT_ERROR
        | Status::FORMAT_IN_PROGRESS
        | Status::SANITIZE_IN_PROGRESS
        | Status::ABORT_REQUESTED
        | Status::ABORTED_SQ_DELETION
        | Status::ABORTED_POWER_LOSS
        | Status::ABORTED_PREEMPT_AND_ABORT => ErrorKind::Busy,
        Status::INVALID_FIELD => ErrorKind::Invalid,
        other => match other.sct() {
            StatusCodeType::MEDIA => ErrorKind::Medium,
            StatusCodeType::PATH => ErrorKind::Gone,
            _ => ErrorKind::Internal,
        },
    }
}

/// Whether the same command may succeed later: Do Not Retry is clear, and the status is not its proper result.
pub(super) fn may_succeed_later(status: Status) -> bool {
    !status.dnr()
        && !matches!(
            status.code(),
            Status::COMPARE_FAILURE
                | Status::LBA_OUT_OF_RANGE
                | Status::NAMESPACE_WRITE_PROTECTED
                | Status::INVALID_OPCODE
                | Status::INVALID_FIELD
                | Status::INVALID_NAMESPACE_OR_FORMAT
        )
}

/// Whether the drive says that it does not do this at all.
pub(super) fn is_unknown(status: Status) -> bool {
    matches!(status.code(), Status::INVALID_OPCODE | Status::INVALID_FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_status_but_success_has_a_kind_and_none_says_success() {
        for &status in Status::KNOWN.iter().filter(|status| !status.is_success()) {
            assert_ne!(kind(status).code(), 0, "{status}");
            assert_eq!(kind(status), kind(status.with_dnr().with_more()), "{status}");
        }
    }

    #[test]
    fn media_errors_are_told_from_those_of_the_way() {
        assert_eq!(kind(Status::UNRECOVERED_READ_ERROR), ErrorKind::Medium);
        assert_eq!(kind(Status::INTERNAL_PATH_ERROR), ErrorKind::Gone);
        assert_eq!(kind(Status::NAMESPACE_WRITE_PROTECTED.with_dnr()), ErrorKind::ReadOnly);
        assert_eq!(kind(Status::COMPARE_FAILURE), ErrorKind::CompareFailed);
    }

    #[test]
    fn what_is_a_proper_result_is_not_tried_again() {
        assert!(may_succeed_later(Status::INTERNAL_ERROR));
        assert!(!may_succeed_later(Status::INTERNAL_ERROR.with_dnr()));
        assert!(!may_succeed_later(Status::COMPARE_FAILURE));
    }
}
