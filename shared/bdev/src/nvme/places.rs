//! Places of requests, or of parts of them, under way: what each holds, and what it is at.

use super::job::Job;
use super::memory::key;

/// What a place is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// Its command is with the drive since then.
    Sent {
        at: u64,
        aborted: bool,
    },
    Waiting(Reason),
    /// A request that excludes it is under way.
    Blocked,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its memory to be registered.
    Memory,
    /// A buffer.
    Buffer,
    /// The queue to be made again.
    Queue,
    /// A time.
    Until(u64),
}

/// A part of a request under way, one command of it at a time.
pub(super) struct PlaceInUse {
    pub(super) job: Job,
    pub(super) state: State,
    /// The parts that it belongs to; `None` if it is the whole request.
    pub(super) group: Option<Member>,
}

/// One of several parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) group: u16,
    /// Which of them, counted from 0.
    pub(super) number: u16,
}

/// Whether a request uses the region of this key.
pub(super) fn uses(places: &[PlaceInUse], wanted: usize) -> bool {
    let mut pieces = places.iter().flat_map(|place| place.job.pieces());
    pieces.any(|piece| key(&piece.region) == wanted)
}
