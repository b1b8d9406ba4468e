//! One queue pair of the client.

use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::HostSlice;
use nvme_spec::command::{Command, NvmOpcode};
use nvme_spec::{CommandId, Completion, Iova, Lba, Nsid};
use std::sync::atomic::Ordering;

/// Bytes of each command's buffer.
pub const BUFFER: u64 = 4096;

/// What the client asks for: reads of one page at random places.
pub struct Commands {
    nsid: Nsid,
    /// First byte of the buffers in guest memory, one for each command identifier.
    buffers: u64,
    blocks: u64,
    per_read: u64,
    random: u64,
}

/// A queue pair.
pub struct Queue<'a> {
    qid: usize,
    entries: u32,
    sq: HostSlice<'a>,
    cq: HostSlice<'a>,
    doorbells: &'a DoorbellPage,
    tail: u32,
    head: u32,
    phase: bool,
}

impl Commands {
    /// Reads of 4 KiB of namespace `nsid`, which has `blocks` blocks of `1 << block_shift` bytes.
    pub fn reads(nsid: Nsid, buffers: u64, blocks: u64, block_shift: u32) -> Self {
        let per_read = BUFFER >> block_shift;
        Self { nsid, buffers, blocks: blocks / per_read, per_read, random: 0x9E37_79B9_7F4A_7C15 }
    }

    /// The next command.
    #[inline]
    pub fn next(&mut self, cid: u16) -> Command {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The high half of a product spreads evenly without a division.
        let place = (u128::from(self.random) * u128::from(self.blocks)) >> 64;
        let buffer = Iova(self.buffers + u64::from(cid) * BUFFER);
        let mut command = Command::nvm(NvmOpcode::READ, CommandId(cid), self.nsid)
            .with_prps(buffer, Iova(0))
            .with_slba(Lba(place as u64 * self.per_read));
        command.cdw12 = self.per_read as u32 - 1;
        command
    }
}

impl<'a> Queue<'a> {
    /// A new queue pair of `entries` each in this memory.
    pub fn new(
        qid: usize,
        entries: u32,
        sq: HostSlice<'a>,
        cq: HostSlice<'a>,
        doorbells: &'a DoorbellPage,
    ) -> Self {
        Self { qid, entries, sq, cq, doorbells, tail: 0, head: 0, phase: true }
    }

    /// Writes an entry; [`Self::ring`] tells of it.
    #[inline]
    pub fn push(&mut self, command: Command) {
        self.sq.store_words(self.tail as usize * 64, command.into_words());
        self.tail += 1;
        if self.tail == self.entries {
            self.tail = 0;
        }
    }

    /// Rings the tail doorbell.
    #[inline]
    pub fn ring(&self) {
        self.doorbells.store(2 * self.qid, self.tail);
    }

    /// Takes the next completion, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        let at = self.head as usize * 16;
        let high = self.cq.load_u64(at + 8, Ordering::Acquire)?;
        let low = self.cq.load_u64(at, Ordering::Relaxed)?;
        let entry = Completion::from_halves([low, high]);
        if entry.phase() != self.phase {
            return None;
        }
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(entry)
    }

    /// Tells the controller how far this has reaped.
    #[inline]
    pub fn acknowledge(&self) {
        self.doorbells.store(2 * self.qid + 1, self.head);
    }

    /// Keeps `depth` commands outstanding until `total` have completed. A status other than success panics.
    #[inline]
    pub fn run(&mut self, commands: &mut Commands, depth: u16, total: u64) {
        let mut submitted = u64::from(depth).min(total);
        let mut completed = 0;
        (0..submitted as u16).for_each(|cid| self.push(commands.next(cid)));
        self.ring();
        while completed < total {
            let mut reaped = 0;
            let mut pushed = 0;
            while let Some(entry) = self.pop() {
                assert!(entry.status().is_success(), "{entry:?}");
                reaped += 1;
                if submitted < total {
                    submitted += 1;
                    pushed += 1;
                    self.push(commands.next(entry.cid.0));
                }
            }
            if reaped > 0 {
                completed += reaped;
                if pushed > 0 {
                    self.ring();
                }
                self.acknowledge();
            }
        }
    }

    /// One turn of a client of several queues: reaps what is there and submits as much again. Returns how much.
    #[inline]
    pub fn turn(&mut self, commands: &mut Commands) -> u64 {
        let mut reaped = 0;
        while let Some(entry) = self.pop() {
            assert!(entry.status().is_success(), "{entry:?}");
            reaped += 1;
            self.push(commands.next(entry.cid.0));
        }
        if reaped > 0 {
            self.ring();
            self.acknowledge();
        }
        reaped
    }
}
