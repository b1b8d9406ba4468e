//! The telemetry segment, one per process that serves I/O: what it does with its time, how it samples, and the lossy
//! ring of traced commands. Written by that process, mapped read-only by whoever shows it.
//!
//! All counters have one writer: a load and a store add to them, and a reader may be behind, never wrong.

use super::limits::Limit;
use super::{Layout, SegmentHeader};
use crate::ring::{RingControl, RingEntry, RingView};
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a record in the trace ring.
pub const TRACE_WORDS: usize = 16;
/// Records in the trace ring; further ones are dropped and counted until there is room.
pub const TRACE_DEPTH: usize = 1024;

/// The telemetry segment.
#[repr(C)]
pub struct TelemetryLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// What the poll thread does with its time.
    pub times: PollTimes,
    /// Which commands are traced.
    pub policy: TracePolicy,
    trace_control: RingControl,
    traces: [RingEntry<TRACE_WORDS>; TRACE_DEPTH],
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for TelemetryLayout {
    const KIND: u32 = u32::from_le_bytes(*b"TELE");
    const VERSION: u32 = 1;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}

impl TelemetryLayout {
    /// The ring of traced commands; always there, its depth is a constant that fits.
    pub fn traces(&self) -> Option<RingView<'_, TRACE_WORDS>> {
        RingView::new(&self.trace_control, &self.traces, TRACE_DEPTH)
    }
}

const _: () = assert!(TRACE_DEPTH.is_power_of_two());

/// What a poll thread does with its time, in nanoseconds since the process started. Brought up to date at every pause
/// and at least once in some thousand polls.
#[repr(C, align(64))]
pub struct PollTimes {
    /// Time with work, short looks for more included.
    pub busy: AtomicU64,
    /// Time spent looking for work in vain.
    pub spinning: AtomicU64,
    /// Time asleep or napping.
    pub sleeping: AtomicU64,
    /// Polls.
    pub polls: AtomicU64,
    /// Naps, which end by themselves.
    pub naps: AtomicU64,
    /// Sleeps, which somebody ends.
    pub sleeps: AtomicU64,
    /// When the pause in hand began, by CLOCK_MONOTONIC; 0 while there is none.
    asleep_since: AtomicU64,
    /// Odd while `sleeping` and `asleep_since` are being changed together.
    sequence: AtomicU64,
}

impl PollTimes {
    /// A pause begins. By the one writer.
    pub fn fall_asleep(&self, monotonic: u64) {
        self.change(|| self.asleep_since.store(monotonic, Ordering::Relaxed));
    }

    /// The pause in hand is over; it took so long. By the one writer.
    pub fn wake(&self, nanoseconds: u64) {
        self.change(|| {
            add(&self.sleeping, nanoseconds);
            self.asleep_since.store(0, Ordering::Relaxed);
        });
    }

    /// Time asleep, the pause in hand included; `monotonic` is CLOCK_MONOTONIC now.
    pub fn asleep(&self, monotonic: u64) -> u64 {
        let mut found = 0;
        // Pauses are far longer than a change of theirs: more than one try is rare, and a wrong number no harm.
        for _ in 0..8 {
            // Acquire: pairs with the last Release of `change`.
            let before = self.sequence.load(Ordering::Acquire);
            let past = self.sleeping.load(Ordering::Relaxed);
            found = match self.asleep_since.load(Ordering::Relaxed) {
                0 => past,
                since => past.wrapping_add(monotonic.saturating_sub(since)),
            };
            // Acquire: what was read above is not younger than the number below.
            std::sync::atomic::fence(Ordering::Acquire);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                break;
            }
        }
        found
    }

    fn change(&self, change: impl FnOnce()) {
        let number = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(number.wrapping_add(1), Ordering::Relaxed);
        // Release: who sees a part of the change sees the odd number.
        std::sync::atomic::fence(Ordering::Release);
        change();
        // Release: pairs with the Acquire in `asleep`.
        self.sequence.store(number.wrapping_add(2), Ordering::Release);
    }
}

/// Which commands are traced. Written by the process's control thread.
#[repr(C, align(64))]
pub struct TracePolicy {
    /// See [`Policy`].
    pub word: AtomicU64,
    /// Records that found the ring full.
    pub dropped: AtomicU64,
}

/// Which commands are traced, as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// One command in this many is timed in all its stages; 0 for none.
    pub sample: u32,
    /// A command that took longer than this many microseconds is recorded; 0 for none.
    pub slow_us: u32,
}

impl Policy {
    /// The policy in the low (sample) and the high half (slow) of a word.
    pub fn to_word(self) -> u64 {
        u64::from(self.sample) | u64::from(self.slow_us) << 32
    }

    /// The policy of a word.
    pub fn from_word(word: u64) -> Self {
        Self { sample: word as u32, slow_us: (word >> 32) as u32 }
    }

    /// Nanoseconds from which a command is slow; never reached if none is.
    pub fn slow_ns(self) -> u64 {
        match self.slow_us {
            0 => u64::MAX,
            microseconds => u64::from(microseconds) * 1000,
        }
    }
}

/// Why a command is in the trace ring; several may hold.
pub mod trace_reason {
    /// Its turn came.
    pub const SAMPLED: u8 = 1;
    /// It took longer than the policy's bound.
    pub const SLOW: u8 = 2;
    /// It ended with an error.
    pub const FAILED: u8 = 4;
    /// No reason, but known beside them: it went through a ring, so that a backend has a record of its part.
    pub const RING: u8 = 8;
    /// No reason: it is a fused pair, Compare and Write, of which the first half's numbers are told.
    pub const FUSED: u8 = 16;
    /// All that are reasons.
    pub const REASONS: u8 = SAMPLED | SLOW | FAILED;
}

/// Set in [`TraceRecord::trace`] of a command that somebody captures, and clear in that of any other: a backend knows
/// it by that.
pub const CAPTURED: u64 = 1 << 63;

/// Which process wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceSide {
    /// A worker: a whole command.
    Worker,
    /// A backend: its part in a command that came through a ring.
    Backend,
}

/// One traced command, or a backend's part in one. Times are nanoseconds of the machine's monotonic clock
/// (CLOCK_MONOTONIC), 0 for a stage that was not timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// Low half of the trace id, never 0; the high half is the low half of the controller's id.
    pub trace: u64,
    /// The controller.
    pub controller: u128,
    /// Who wrote it.
    pub side: TraceSide,
    /// [`trace_reason`].
    pub reason: u8,
    /// Opcode of the NVM command set; of a backend's record the ring's operation code.
    pub opcode: u8,
    /// Status field of the completion without phase; of a backend's record the outcome's code.
    pub status: u16,
    /// Submission queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Namespace.
    pub nsid: u32,
    /// First logical block; of a backend's record the offset in bytes.
    pub lba: u64,
    /// Bytes of data; of several requests those of all together.
    pub bytes: u64,
    /// Requests that its block devices got. Dataset Management, Copy and a Flush of all namespaces may have several.
    pub requests: u16,
    /// Those of them that backends serve, which have a record of each; 255 if there are more.
    pub by_ring: u8,
    /// Taken from the submission queue, or from the ring.
    pub fetched: u64,
    /// Set aside since it was over a limit, until [`Self::started`]; 0 if it was not.
    pub held: u64,
    /// The limit over which it was set aside, if it came to be the first that waited: the one that was used up furthest.
    pub limit: Option<Limit>,
    /// A pause that it waited through, in whichever stage: from the begin of the first one, in steps of
    /// [`PAUSE_STEP`]; 0 if there was none.
    pub paused: u64,
    /// To the end of the last one.
    pub resumed: u64,
    /// The command's turn in its batch, or after its limit.
    pub started: u64,
    /// Checked, its memory found.
    pub translated: u64,
    /// Handed to the channel. The end of this stage is [`Self::done`].
    pub submitted: u64,
    /// The channel reported its outcome.
    pub done: u64,
    /// Its completion entry was posted.
    pub posted: u64,
    /// The interrupt was raised.
    pub signalled: u64,
}

/// Nanoseconds in which the times of a pause are told.
pub const PAUSE_STEP: u64 = 1 << PAUSE_SHIFT;
/// Two numbers of 32 bits then hold five hours each, longer than any guest waits.
const PAUSE_SHIFT: u32 = 12;

impl TraceRecord {
    /// Of a command, or of a part of one, of which nothing else is known yet.
    pub const fn new(trace: u64, controller: u128, side: TraceSide) -> Self {
        Self {
            trace,
            controller,
            side,
            reason: 0,
            opcode: 0,
            status: 0,
            sqid: 0,
            cid: 0,
            nsid: 0,
            lba: 0,
            bytes: 0,
            requests: 0,
            by_ring: 0,
            fetched: 0,
            held: 0,
            limit: None,
            paused: 0,
            resumed: 0,
            started: 0,
            translated: 0,
            submitted: 0,
            done: 0,
            posted: 0,
            signalled: 0,
        }
    }

    /// Whether it is a fused pair.
    pub fn is_fused(&self) -> bool {
        self.reason & trace_reason::FUSED != 0
    }

    /// Whether somebody captures it.
    pub fn is_captured(&self) -> bool {
        self.trace & CAPTURED != 0
    }

    /// As words of the ring.
    pub fn to_words(&self) -> [u64; TRACE_WORDS] {
        let side = match self.side {
            TraceSide::Worker => 0,
            TraceSide::Backend => 1,
        };
        [
            self.trace,
            self.controller as u64,
            (self.controller >> 64) as u64,
            side | u64::from(self.limit.map_or(0, Limit::to_bits)) << 4
                | u64::from(self.opcode) << 8
                | u64::from(self.reason) << 16
                | u64::from(self.by_ring) << 24
                | u64::from(self.status) << 32
                | u64::from(self.sqid) << 48,
            u64::from(self.cid) | u64::from(self.requests) << 16 | u64::from(self.nsid) << 32,
            self.lba,
            self.bytes,
            self.fetched,
            self.started,
            self.translated,
            self.submitted,
            self.done,
            self.posted,
            self.signalled,
            self.held,
            self.pause_word(),
        ]
    }

    /// Begin and end of the pause in steps after the fetch, which is before it.
    fn pause_word(&self) -> u64 {
        if self.paused == 0 {
            return 0;
        }
        let steps = |time: u64| {
            let steps = time.wrapping_sub(self.fetched) >> PAUSE_SHIFT;
            steps.min(u64::from(u32::MAX))
        };
        steps(self.paused) | steps(self.resumed).max(1) << 32
    }

    /// From words of the ring; whatever they are, it is a record.
    pub fn from_words(words: &[u64; TRACE_WORDS]) -> Self {
        let side = if words[3] & 0xF == 0 { TraceSide::Worker } else { TraceSide::Backend };
        let after = |steps: u64| match words[15] {
            0 => 0,
            _ => words[7].wrapping_add((steps & u64::from(u32::MAX)) << PAUSE_SHIFT),
        };
        Self {
            trace: words[0],
            controller: u128::from(words[1]) | u128::from(words[2]) << 64,
            side,
            opcode: (words[3] >> 8) as u8,
            reason: (words[3] >> 16) as u8,
            by_ring: (words[3] >> 24) as u8,
            status: (words[3] >> 32) as u16,
            sqid: (words[3] >> 48) as u16,
            cid: words[4] as u16,
            requests: (words[4] >> 16) as u16,
            nsid: (words[4] >> 32) as u32,
            lba: words[5],
            bytes: words[6],
            fetched: words[7],
            started: words[8],
            translated: words[9],
            submitted: words[10],
            done: words[11],
            posted: words[12],
            signalled: words[13],
            held: words[14],
            limit: Limit::from_bits((words[3] >> 4) as u8 & 0xF),
            paused: after(words[15]),
            resumed: after(words[15] >> 32),
        }
    }
}

/// Adds to a counter with one writer: a load and a store do.
#[inline(always)]
pub fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::limits::Rate;

    #[test]
    fn records_come_back_as_they_were() {
        let words: [u64; TRACE_WORDS] = std::array::from_fn(|index| match index {
            3 => 0x7777_8888_5502_0101,
            4 => 0x9999_9999_6666_4444,
            index => 0x1111_1111_1111_1111 * index as u64,
        });
        let record = TraceRecord::from_words(&words);
        assert_eq!(record.to_words(), words);
        assert_eq!((record.side, record.opcode, record.reason), (TraceSide::Backend, 1, 2));
        assert_eq!((record.status, record.sqid, record.cid), (0x8888, 0x7777, 0x4444));
        assert_eq!((record.requests, record.by_ring, record.held), (0x6666, 0x55, words[14]));
    }

    #[test]
    fn a_limit_is_told_beside_the_side() {
        let record = TraceRecord { held: 7, ..TraceRecord::new(1, 2, TraceSide::Worker) };
        let told = |limit| TraceRecord::from_words(&TraceRecord { limit, ..record }.to_words());
        for rate in Rate::ALL {
            for of_controller in [false, true] {
                let limit = Some(Limit { of_controller, rate });
                assert_eq!(told(limit), TraceRecord { limit, ..record });
            }
        }
        assert_eq!(told(None), record);
        assert_eq!([13, 14, 15, 255].map(Limit::from_bits), [None; 4]);
    }

    #[test]
    fn a_pause_is_told_in_steps_after_the_fetch() {
        let record = TraceRecord::new(1, 2, TraceSide::Worker);
        let told = |record: TraceRecord| TraceRecord::from_words(&record.to_words());
        assert_eq!(told(record), record, "there is none");
        let second = 1_000_000_000;
        let (paused, resumed) = (5 * second + PAUSE_STEP, 9 * second);
        let record = TraceRecord { fetched: 5 * second, paused, resumed, ..record };
        let told = told(record);
        assert_eq!(told.paused, paused);
        assert!((resumed - PAUSE_STEP..=resumed).contains(&told.resumed), "{told:?}");
        let forever = TraceRecord { resumed: u64::MAX, ..record };
        assert!(TraceRecord::from_words(&forever.to_words()).resumed > record.fetched);
    }

    #[test]
    fn a_pause_counts_while_it_lasts() {
        let segment = crate::segment::Segment::<TelemetryLayout>::create("telemetry", 1).unwrap();
        let times = &segment.times;
        times.fall_asleep(1_000);
        assert_eq!(times.asleep(1_500), 500);
        times.wake(700);
        assert_eq!(times.asleep(9_000), 700);
        times.fall_asleep(10_000);
        assert_eq!(times.asleep(10_001), 701);
    }

    #[test]
    fn a_policy_is_a_word() {
        let policy = Policy { sample: 1000, slow_us: 10_000 };
        assert_eq!(Policy::from_word(policy.to_word()), policy);
        assert_eq!(policy.slow_ns(), 10_000_000);
        assert_eq!(Policy::default().slow_ns(), u64::MAX);
    }
}
