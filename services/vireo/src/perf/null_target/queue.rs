//! A queue pair of the null target: entries are copied out, completions are stored. On the hot path of `--self`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipc::guest_memory::{Access, HostSlice, Region};
use nvme_spec::{Command, CommandId, Completion, QueueId, Status};

/// A range of what the driver mapped.
#[derive(Debug, Clone)]
pub struct Memory {
    pub(super) region: Arc<Region>,
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// A submission queue and the completion queue of the same number.
#[derive(Debug, Default)]
pub(super) struct Queues {
    pub(super) qid: u16,
    pub(super) sq: Option<Memory>,
    pub(super) cq: Option<Memory>,
    pub(super) vector: Option<u16>,
    pub(super) head: u32,
    pub(super) tail: u32,
    /// Passes of the completion queue: the phase tag is 1 in the even ones.
    pub(super) odd_pass: bool,
    pub(super) posted: bool,
}

impl Memory {
    /// Hands the memory itself out.
    pub fn with(&self, mut use_it: impl FnMut(HostSlice<'_>)) {
        if let Some(slice) = self.region.slice(self.offset, self.len, Access::READ_WRITE) {
            use_it(slice);
        }
    }
}

impl Queues {
    /// Runs the commands up to `tail` and posts the completions of those that are over: status and dword 0.
    #[inline]
    pub(super) fn run(
        &mut self,
        tail: u32,
        mut execute: impl FnMut(&Command) -> Option<(Status, u32)>,
    ) {
        let (Some(sq), Some(cq)) = (&self.sq, &self.cq) else { return };
        let slices = (
            sq.region.slice(sq.offset, sq.len, Access::READ),
            cq.region.slice(cq.offset, cq.len, Access::READ_WRITE),
        );
        let (Some(sq), Some(cq)) = slices else { return };
        let sq_entries = (sq.len() / size_of::<Command>()) as u32;
        let cq_entries = (cq.len() / size_of::<Completion>()) as u32;
        if tail >= sq_entries {
            return;
        }
        while self.head != tail {
            let at = self.head as usize * size_of::<Command>();
            let Some(words) = sq.load_words::<8>(at) else { return };
            let command = Command::from_words(words);
            self.head = if self.head + 1 == sq_entries { 0 } else { self.head + 1 };
            let Some((status, dw0)) = execute(&command) else { continue };
            let cid: CommandId = command.cid();
            let completion = Completion::new(QueueId(self.qid), cid, self.head as u16, status)
                .with_dw0(dw0)
                .with_phase(!self.odd_pass);
            let [low, high] = completion.into_halves();
            let at = self.tail as usize * size_of::<Completion>();
            cq.store_u64(at, low, Ordering::Relaxed);
            // Release: pairs with the driver's Acquire of the phase tag.
            cq.store_u64(at + size_of::<u64>(), high, Ordering::Release);
            self.posted = true;
            self.tail += 1;
            if self.tail == cq_entries {
                self.tail = 0;
                self.odd_pass = !self.odd_pass;
            }
        }
    }

    /// The vector to signal, if completions were posted since the last time.
    #[inline]
    pub(super) fn interrupt(&mut self) -> Option<u16> {
        if std::mem::take(&mut self.posted) { self.vector } else { None }
    }
}
