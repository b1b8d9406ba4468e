//! Doorbell Buffer Config. NVMe Base 2.0c 5.8.

use crate::admin::{INVALID_FIELD, Outcome};
use crate::controller::work::{Step, Work};
use crate::controller::{Context, Controller};
use crate::prp::PageShift;
use ipc::Iova;
use ipc::guest_memory::Access;
use ipc::layout::controller::QueueState;
use nvme_spec::Status;
use nvme_spec::command::Command;
use std::sync::atomic::Ordering;

impl Controller {
    pub(crate) fn configure_doorbell_buffers(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let page = PageShift::clamped(self.registers.cc.page_shift()).bytes();
        let (shadow, events) = (command.prp1().0, command.prp2().0);
        for buffer in [shadow, events] {
            let mapped = |access| {
                cx.memory.translate(Iova(buffer), page as u32, access, &mut |_| {}).is_ok()
            };
            if buffer & (page - 1) != 0 || !mapped(Access::WRITE) || !mapped(Access::READ) {
                return Err(INVALID_FIELD);
            }
        }
        if shadow == events {
            return Err(INVALID_FIELD);
        }
        self.seed_shadow(shadow, cx)?;
        let settings = &self.segment.settings;
        settings.shadow_doorbells.store(shadow, Ordering::Relaxed);
        settings.shadow_event_indexes.store(events, Ordering::Relaxed);
        settings.shadow_enabled.store(1, Ordering::Relaxed);
        let version = self.publish(cx);
        // The host looks at the buffers from the completion on, so the workers do before it.
        let step = Step::Settling { worker: None, version, outcome: Ok(0) };
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }

    /// Queues that are there already go on in the buffer from where their doorbells stand.
    fn seed_shadow(&self, shadow: u64, cx: &mut Context<'_>) -> Result<(), Status> {
        let free = QueueState::Free as u32;
        let (sqs, cqs) = (&self.segment.submission_queues, &self.segment.completion_queues);
        for (qid, (sq, cq)) in sqs.iter().zip(cqs).enumerate().skip(1) {
            for (index, state) in [(qid * 2, &sq.state), (qid * 2 + 1, &cq.state)] {
                if state.load(Ordering::Relaxed) == free {
                    continue;
                }
                let value = cx.doorbells.load(index).to_le_bytes();
                let at = Iova(shadow.wrapping_add(index as u64 * 4));
                cx.memory.write(at, &value).map_err(|_| INVALID_FIELD)?;
            }
        }
        Ok(())
    }
}
