//! Format NVM. NVMe Base 2.0c 5.14.
//!
//! The namespace is marked in every controller's rows; when nobody has anything in flight to it, a backend formats it;
//! with its answer the rows change, and the command completes when the workers took that over.

use crate::admin::{INVALID_FIELD, INVALID_NAMESPACE, Outcome, is_valid};
use crate::controller::work::{Format, Step, Work};
use crate::controller::{Context, Controller, Effect};
use crate::namespace::LBA_FORMATS;
use nvme_spec::Status;
use nvme_spec::command::Command;
use nvme_spec::command::admin::{FormatNvmDword10, SecureErase};

impl Controller {
    pub(crate) fn format(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let cdw10 = FormatNvmDword10::from_bits(command.cdw10);
        let nsid = command.nsid;
        // FNA says that a format is of one namespace: the broadcast identifier is not supported.
        if nsid == nvme_spec::Nsid::BROADCAST {
            return Err(INVALID_FIELD);
        }
        let namespace = cx.subsystem.namespace(nsid).ok_or(match is_valid(nsid) {
            true => INVALID_FIELD,
            false => INVALID_NAMESPACE,
        })?;
        let index = cdw10.lba_format(LBA_FORMATS.len());
        let block_shift = *LBA_FORMATS.get(index).ok_or(Status::INVALID_FORMAT.with_dnr())?;
        // No metadata, so no protection information (DPC 0); the settings of either mean nothing.
        if cdw10.pi() != 0 || namespace.config().size >> block_shift == 0 {
            return Err(Status::INVALID_FORMAT.with_dnr());
        }
        let erase = match cdw10.ses() {
            SecureErase::NONE => false,
            SecureErase::USER_DATA => true,
            _ => return Err(INVALID_FIELD),
        };
        if namespace.is_write_protected() {
            return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
        }
        if namespace.formatting.is_some() {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        cx.subsystem.begin_format(nsid);
        self.synchronise(Some(nsid), cx);
        cx.effect(Effect::SubsystemChanged);
        let step = Step::FormatDraining(Format { nsid, block_shift, erase });
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }
}
