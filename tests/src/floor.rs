//! The floor under every figure: one queue pair in shared memory, a server that copies each entry into a log and posts
//! a completion, and nothing else. What a controller costs above this is its own.

use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::HostSlice;
use ipc::layout::queues::InFlightSlot;
use nvme_spec::command::Command;
use nvme_spec::{Completion, QueueId, Status};
use std::sync::atomic::{AtomicBool, Ordering};

/// Serves queue pair `qid` until told to stop.
pub fn serve(
    qid: usize,
    entries: u32,
    sq: HostSlice<'_>,
    cq: HostSlice<'_>,
    doorbells: &DoorbellPage,
    log: &[InFlightSlot],
    stop: &AtomicBool,
) {
    let (mut head, mut tail, mut phase) = (0, 0, true);
    let mut polls = 0_u32;
    loop {
        let rung = doorbells.load(2 * qid);
        while head != rung {
            let Some(words) = sq.load_words::<8>(head as usize * 64) else { return };
            let slot = &log[head as usize % log.len()];
            for (to, word) in slot.sqe.iter().zip(words) {
                to.store(word, Ordering::Relaxed);
            }
            head = if head + 1 == entries { 0 } else { head + 1 };
            let cid = Command::from_words(words).cid();
            let entry = Completion::new(QueueId(qid as u16), cid, head as u16, Status::SUCCESS)
                .with_phase(phase);
            cq.store_words(tail as usize * 16, entry.into_halves());
            tail += 1;
            if tail == entries {
                (tail, phase) = (0, !phase);
            }
        }
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(1024) && stop.load(Ordering::Relaxed) {
            return;
        }
    }
}
