//! How a request to a block device ended, as the status of its command.

use bdev::request::{ErrorKind, Op, Outcome};
use nvme_spec::Status;

/// The status of a command whose request ended so. Do Not Retry is set where the same command would end the same way.
#[inline]
pub fn status(op: Op, outcome: Outcome) -> Status {
    match outcome {
        Ok(()) => Status::SUCCESS,
        Err(kind) => error_status(op, kind),
    }
}

/// What the two commands of a fused pair are completed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedOutcome {
    /// Of the Compare.
    pub first: Status,
    /// Of the Write.
    pub second: Status,
}

/// The statuses of a fused pair whose one request ended so.
pub fn fused_outcome(outcome: Outcome) -> FusedOutcome {
    let aborted = Status::ABORTED_FAILED_FUSED;
    match outcome {
        Ok(()) => FusedOutcome { first: Status::SUCCESS, second: Status::SUCCESS },
        Err(ErrorKind::CompareFailed) => {
            let first = error_status(Op::Compare, ErrorKind::CompareFailed);
            FusedOutcome { first, second: aborted }
        }
        // The request is one: whether reading or writing failed, the second half did not take effect as a whole.
        Err(kind) => FusedOutcome { first: error_status(Op::Write, kind), second: aborted },
    }
}

fn error_status(op: Op, kind: ErrorKind) -> Status {
    match kind {
        // The device shrank below the size that the namespace has.
        ErrorKind::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(),
        ErrorKind::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.with_dnr(),
        ErrorKind::NoSpace => Status::CAPACITY_EXCEEDED.with_dnr(),
        ErrorKind::Medium if op.writes() || op == Op::Flush => Status::WRITE_FAULT,
        ErrorKind::Medium => Status::UNRECOVERED_READ_ERROR,
        ErrorKind::CompareFailed => Status::COMPARE_FAILURE.with_dnr(),
        ErrorKind::Busy => Status::COMMAND_INTERRUPTED,
        ErrorKind::Unsupported => Status::INVALID_OPCODE.with_dnr(),
        ErrorKind::Gone => Status::INTERNAL_PATH_ERROR,
        ErrorKind::Fault => Status::DATA_TRANSFER_ERROR.with_dnr(),
        ErrorKind::Invalid | ErrorKind::Internal => Status::INTERNAL_ERROR,
    }
}
