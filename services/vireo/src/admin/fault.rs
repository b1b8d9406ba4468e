//! `vireo fault`: faults injected into volumes.

use super::arguments::{Access, Format};
use super::run::{answer, list, one};
use super::session::{Session, full_name};
use super::{json, show};
use crate::perf::units::parse_duration;
use crate::text::print;
use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;
use vireo_api::v1::{
    CreateFaultRequest, DeleteFaultRequest, Fault, FaultOperation, FaultStatus, ListFaultsRequest,
    fault,
};

/// Of `vireo fault`.
#[derive(Debug, Subcommand)]
pub enum FaultVerb {
    /// Show all of them, or those of one volume.
    List {
        /// The volume.
        #[arg(default_value = "-", hide_default_value = true)]
        volume: String,
    },
    /// Make one; it is in force at once.
    Create(Box<NewFault>),
    /// End one (`VOLUME/FAULT`), all of a volume (`VOLUME/-`) or all (`-/-`).
    Delete {
        /// Which.
        name: String,
        /// If it is not there, that is a success.
        #[arg(long)]
        allow_missing: bool,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// A fault to be made.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("condition").required(true)))]
#[command(group(clap::ArgGroup::new("effect").required(true)))]
pub struct NewFault {
    /// The volume.
    pub volume: String,
    /// Its name; one is made if not given.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// Only this operation; may be given several times.
    #[arg(long = "operation", value_enum, value_name = "OPERATION")]
    pub operations: Vec<Operation>,
    /// Only commands that touch blocks from this one on.
    #[arg(long, value_name = "LBA", default_value_t = 0, hide_default_value = true)]
    pub first_lba: u64,
    /// So many blocks from there on; all that follow if not given.
    #[arg(long, value_name = "BLOCKS", default_value_t = 0, hide_default_value = true)]
    pub lba_count: u64,
    /// Hits this many commands in a million, by chance.
    #[arg(long, value_name = "N", group = "condition")]
    pub per_million: Option<u32>,
    /// Hits one command in so many; 1 is all.
    #[arg(long, value_name = "N", group = "condition")]
    pub every: Option<u64>,
    /// Hits the next so many commands.
    #[arg(long, value_name = "N", group = "condition")]
    pub next: Option<u64>,
    /// Commands fail with this.
    #[arg(long, value_enum, group = "effect")]
    pub status: Option<StatusName>,
    /// Commands complete later by this.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, group = "effect")]
    pub delay: Option<Duration>,
    /// Commands complete when the fault is deleted, or after this.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, group = "effect")]
    pub hang: Option<Duration>,
    /// Check everything, change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Compare.
    Compare,
    /// Write Zeroes.
    WriteZeroes,
    /// Dataset Management.
    Deallocate,
    /// Verify.
    Verify,
    /// Copy.
    Copy,
}

/// Statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusName {
    /// Unrecovered Read Error or Write Fault.
    MediaError,
    /// Capacity Exceeded.
    CapacityExceeded,
    /// Namespace is Write Protected.
    WriteProtected,
    /// Command Interrupted: hosts try again.
    CommandInterrupted,
    /// Internal Error.
    InternalError,
    /// Data Transfer Error.
    DataTransferError,
    /// LBA Out of Range.
    LbaOutOfRange,
    /// Compare Failure.
    CompareFailure,
    /// Invalid Command Opcode.
    InvalidOpcode,
}

/// Runs a command.
pub(super) async fn run(verb: FaultVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    match verb {
        FaultVerb::List { volume } => {
            let request = ListFaultsRequest { parent: full_name("volumes", &volume) };
            let faults = answer(session.faults.list_faults(request).await)?.faults;
            list("Fault", &faults, show::FAULT, access.output)
        }
        FaultVerb::Create(new) => {
            let fault = answer(session.faults.create_fault(request(*new)?).await)?;
            one("Fault", &fault, show::FAULT, access.output)
        }
        FaultVerb::Delete { name, allow_missing, dry_run } => {
            let name = full(&name)?;
            let request =
                DeleteFaultRequest { name: name.clone(), allow_missing, validate_only: dry_run };
            let deleted = answer(session.faults.delete_fault(request).await)?;
            if access.output == Format::Table {
                let verb = if dry_run { "could be deleted" } else { "deleted" };
                print(&format!("{} {verb}\n", deleted.deleted_count))?;
            } else {
                show::structured(&json::of("DeleteFaultResponse", &deleted)?, access.output)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// `VOLUME/FAULT` in full.
fn full(name: &str) -> anyhow::Result<String> {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [volume, fault] => Ok(format!("volumes/{volume}/faults/{fault}")),
        ["volumes", _, "faults", _] => Ok(name.to_owned()),
        _ => Err(anyhow!("\"{name}\" is not like VOLUME/FAULT")),
    }
}

fn request(new: NewFault) -> anyhow::Result<CreateFaultRequest> {
    let condition = match (new.per_million, new.every, new.next) {
        (Some(rate), ..) => Some(fault::Condition::PerMillion(rate)),
        (_, Some(every), _) => Some(fault::Condition::Every(every)),
        (.., Some(next)) => Some(fault::Condition::Next(next)),
        (None, None, None) => None,
    };
    let effect = match (new.status, new.delay, new.hang) {
        (Some(name), ..) => Some(fault::Effect::Status(status(name).into())),
        (_, Some(delay), _) => Some(fault::Effect::Delay(delay.try_into()?)),
        (.., Some(hang)) => Some(fault::Effect::Hang(hang.try_into()?)),
        (None, None, None) => None,
    };
    let fault = Fault {
        operations: new.operations.into_iter().map(|one| operation(one).into()).collect(),
        first_lba: new.first_lba,
        lba_count: new.lba_count,
        condition,
        effect,
        ..Fault::default()
    };
    Ok(CreateFaultRequest {
        parent: full_name("volumes", &new.volume),
        fault_id: new.name,
        fault: Some(fault),
        validate_only: new.dry_run,
    })
}

fn operation(operation: Operation) -> FaultOperation {
    match operation {
        Operation::Read => FaultOperation::Read,
        Operation::Write => FaultOperation::Write,
        Operation::Flush => FaultOperation::Flush,
        Operation::Compare => FaultOperation::Compare,
        Operation::WriteZeroes => FaultOperation::WriteZeroes,
        Operation::Deallocate => FaultOperation::Deallocate,
        Operation::Verify => FaultOperation::Verify,
        Operation::Copy => FaultOperation::Copy,
    }
}

fn status(name: StatusName) -> FaultStatus {
    match name {
        StatusName::MediaError => FaultStatus::MediaError,
        StatusName::CapacityExceeded => FaultStatus::CapacityExceeded,
        StatusName::WriteProtected => FaultStatus::WriteProtected,
        StatusName::CommandInterrupted => FaultStatus::CommandInterrupted,
        StatusName::InternalError => FaultStatus::InternalError,
        StatusName::DataTransferError => FaultStatus::DataTransferError,
        StatusName::LbaOutOfRange => FaultStatus::LbaOutOfRange,
        StatusName::CompareFailure => FaultStatus::CompareFailure,
        StatusName::InvalidOpcode => FaultStatus::InvalidOpcode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_be_short() {
        assert_eq!(full("v/f").unwrap(), "volumes/v/faults/f");
        assert_eq!(full("volumes/v/faults/f").unwrap(), "volumes/v/faults/f");
        assert!(full("v").is_err());
    }
}
