//! A queue pair in the host's memory.

use std::sync::atomic::Ordering;

use nvme_spec::{Command, Completion, QueueId};

use super::memory::{Buffer, HostMemory};

/// Bytes of a submission queue entry.
pub const SQE: u64 = 64;
/// Bytes of a completion queue entry.
pub const CQE: u64 = 16;

/// One submission and one completion queue of the same identifier and size.
#[derive(Clone, Debug)]
pub struct QueuePair {
    /// Its identifier.
    pub qid: QueueId,
    /// Entries of either queue.
    pub entries: u32,
    /// Interrupt vector.
    pub vector: u16,
    /// Memory of the submission queue.
    pub sq: Buffer,
    /// Memory of the completion queue.
    pub cq: Buffer,
    /// Where the next command goes.
    pub tail: u32,
    /// Where the next completion comes.
    pub head: u32,
    /// Phase tag of a new completion.
    pub phase: bool,
}

impl QueuePair {
    /// Zeroed memory for a queue pair; nothing is created yet.
    #[track_caller]
    pub fn allocate(memory: &mut HostMemory, qid: QueueId, entries: u32, vector: u16) -> Self {
        let sq = memory.allocate(u64::from(entries) * SQE);
        let cq = memory.allocate(u64::from(entries) * CQE);
        memory.fill(sq, 0);
        memory.fill(cq, 0);
        Self { qid, entries, vector, sq, cq, tail: 0, head: 0, phase: true }
    }

    /// As just created: empty, its memory zeroed.
    pub fn reset(&mut self, memory: &HostMemory) {
        (self.tail, self.head, self.phase) = (0, 0, true);
        memory.fill(self.sq, 0);
        memory.fill(self.cq, 0);
    }

    /// Puts a command at the tail. Nobody is told yet: ring `tail`.
    pub fn push(&mut self, memory: &HostMemory, command: Command) {
        let entry = self.sq.part(u64::from(self.tail) * SQE, SQE);
        let slice = memory.slice(entry.iova, SQE as usize);
        for (index, word) in command.into_words().into_iter().enumerate() {
            slice.store_u64(index * 8, word, Ordering::Relaxed);
        }
        self.tail = (self.tail + 1) % self.entries;
    }

    /// The next completion, if it is there. Its place is free again once `head` is rung.
    pub fn pop(&mut self, memory: &HostMemory) -> Option<Completion> {
        let entry = self.cq.part(u64::from(self.head) * CQE, CQE);
        let slice = memory.slice(entry.iova, CQE as usize);
        // Acquire: pairs with the controller's store of the phase, after the rest of the entry.
        let high = slice.load_u64(8, Ordering::Acquire).expect("entries are aligned");
        if Completion::from_halves([0, high]).phase() != self.phase {
            return None;
        }
        let low = slice.load_u64(0, Ordering::Relaxed).expect("entries are aligned");
        self.head += 1;
        if self.head == self.entries {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(Completion::from_halves([low, high]))
    }

    /// Index of the submission queue's doorbell; that of the completion queue is the next.
    pub fn doorbell(&self) -> usize {
        usize::from(self.qid.0) * 2
    }
}
