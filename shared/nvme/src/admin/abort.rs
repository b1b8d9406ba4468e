//! Abort. NVMe Base 2.0c 5.1.
//!
//! A command of an I/O queue is aborted by the worker that serves the queue, if it has not been sent on; a held
//! Asynchronous Event Request here. Other admin commands are not aborted.

use crate::admin::Outcome;
use crate::controller::Context;
use crate::controller::Controller;
use crate::controller::work::{Step, Work};
use nvme_spec::Status;
use nvme_spec::command::Command;
use nvme_spec::command::admin::{AbortCompletion, AbortDword10};

/// Abort Command Limit (ACL), 0's based.
pub(crate) const ACL_Z: u8 = 3;

impl Controller {
    pub(crate) fn abort(
        &mut self,
        command: &Command,
        _cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let cdw10 = AbortDword10::from_bits(command.cdw10);
        let not_aborted = AbortCompletion::new().with_not_aborted(true).into_bits();
        if cdw10.sqid().is_admin() {
            if !self.take_event_request(cdw10.cid()) {
                return Ok(Outcome::Done(not_aborted));
            }
            self.finish(cdw10.cid(), Err(Status::ABORT_REQUESTED));
            return Ok(Outcome::Done(AbortCompletion::new().into_bits()));
        }
        let aborting = |work: &&Work| {
            work.cid.is_some()
                && matches!(work.step, Step::AbortQueued { .. } | Step::Aborting { .. })
        };
        if self.work.iter().filter(aborting).count() > usize::from(ACL_Z) {
            return Err(Status::ABORT_LIMIT_EXCEEDED);
        }
        if self.active_sq(cdw10.sqid()).is_none() {
            return Ok(Outcome::Done(not_aborted));
        }
        let step = Step::AbortQueued { sqid: cdw10.sqid(), target: cdw10.cid() };
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }
}
