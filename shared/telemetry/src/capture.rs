//! Captured commands: whoever wants to see a controller's next commands gets the records of them here.
//!
//! Worker and backend each have a list of who captures what. A record of a captured command
//! ([`TraceRecord::is_captured`]) goes to all who capture its controller, and becomes spans of their traces.

use crate::spans::Context;
use ipc::layout::telemetry::TraceRecord;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Most captures of a process at a time.
pub const MAX_CAPTURES: usize = 8;
/// Records that wait for whoever captures; further ones are lost and counted.
const WAITING: usize = 4096;

/// Who captures what in this process.
#[derive(Debug, Default)]
pub struct Captures {
    list: Mutex<Vec<Arc<Capture>>>,
}

#[derive(Debug)]
struct Capture {
    /// Names it.
    key: u64,
    controller: u128,
    /// The span whose children the commands are.
    context: Option<Context>,
    waiting: Mutex<VecDeque<TraceRecord>>,
    stirred: Notify,
    lost: AtomicU64,
    ended: AtomicBool,
}

/// What came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Records, oldest first.
    pub records: Vec<TraceRecord>,
    /// Records that found no room so far.
    pub lost: u64,
    /// There will be no more: the controller is gone.
    pub ended: bool,
}

/// There are [`MAX_CAPTURES`] already, or one of this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl Captures {
    /// Captures a controller from now on; spans become children of `context`.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn begin(
        &self,
        key: u64,
        controller: u128,
        context: Option<Context>,
    ) -> Result<(), NoRoom> {
        let mut list = self.list();
        if list.len() >= MAX_CAPTURES || list.iter().any(|capture| capture.key == key) {
            return Err(NoRoom);
        }
        list.push(Arc::new(Capture {
            key,
            controller,
            context,
            waiting: Mutex::default(),
            stirred: Notify::new(),
            lost: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }));
        Ok(())
    }

    /// Ends a capture. The controller, if nobody else captures it.
    pub fn end(&self, key: u64) -> Option<u128> {
        let mut list = self.list();
        let place = list.iter().position(|capture| capture.key == key)?;
        let controller = list.swap_remove(place).controller;
        list.iter().all(|other| other.controller != controller).then_some(controller)
    }

    /// Says that a controller is gone to all who capture one of which `is_gone` holds.
    pub fn controllers_gone(&self, is_gone: impl Fn(u128) -> bool) {
        for capture in self.list().iter().filter(|capture| is_gone(capture.controller)) {
            // Relaxed: read by whoever the notice wakes, or with the next look.
            capture.ended.store(true, Ordering::Relaxed);
            capture.stirred.notify_one();
        }
    }

    /// Hands a record to all who capture its controller; the spans whose children it is.
    pub(crate) fn offer(&self, record: &TraceRecord) -> Vec<Context> {
        let list = self.list();
        let of_controller = list.iter().filter(|capture| capture.controller == record.controller);
        of_controller
            .filter_map(|capture| {
                let mut waiting = lock(&capture.waiting);
                if waiting.len() < WAITING {
                    waiting.push_back(*record);
                } else {
                    capture.lost.fetch_add(1, Ordering::Relaxed);
                }
                capture.stirred.notify_one();
                capture.context
            })
            .collect()
    }

    /// Takes at most `most` records of a capture; waits at most `patience` for the first. `None`: there is no such
    /// capture.
    pub async fn take(&self, key: u64, most: usize, patience: Duration) -> Option<Taken> {
        let capture = self.list().iter().find(|capture| capture.key == key).map(Arc::clone)?;
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let taken = capture.now(most);
            if !taken.records.is_empty() || taken.ended {
                return Some(taken);
            }
            // A notice that came since is kept for whoever waits next.
            if tokio::time::timeout_at(deadline, capture.stirred.notified()).await.is_err() {
                return Some(capture.now(most));
            }
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Capture>>> {
        lock(&self.list)
    }
}

impl Capture {
    fn now(&self, most: usize) -> Taken {
        let ended = self.ended.load(Ordering::Relaxed);
        let mut waiting = lock(&self.waiting);
        let count = waiting.len().min(most);
        let records: Vec<TraceRecord> = waiting.drain(..count).collect();
        let ended = ended && waiting.is_empty();
        Taken { records, lost: self.lost.load(Ordering::Relaxed), ended }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::layout::telemetry::{CAPTURED, TRACE_WORDS};

    fn record(controller: u64, trace: u64) -> TraceRecord {
        let mut words = [0; TRACE_WORDS];
        (words[0], words[1]) = (trace | CAPTURED, controller);
        TraceRecord::from_words(&words)
    }

    #[tokio::test]
    async fn records_go_to_all_who_capture_the_controller() {
        let captures = Captures::default();
        let context = Context::new(5, 6);
        captures.begin(1, 10, context).unwrap();
        captures.begin(2, 10, None).unwrap();
        captures.begin(3, 11, None).unwrap();
        assert_eq!(captures.begin(3, 12, None), Err(NoRoom));
        assert_eq!(captures.offer(&record(10, 1)), [context.unwrap()]);
        assert!(captures.offer(&record(12, 1)).is_empty());
        for key in [1, 2] {
            let taken = captures.take(key, 8, Duration::ZERO).await.unwrap();
            assert_eq!(taken.records, [record(10, 1)]);
        }
        assert_eq!(captures.take(3, 8, Duration::ZERO).await, Some(Taken::default()));
        assert_eq!(captures.take(4, 8, Duration::ZERO).await, None);
        assert_eq!(captures.end(1), None, "somebody else captures it still");
        assert_eq!(captures.end(2), Some(10));
        assert_eq!(captures.end(2), None);
    }

    #[tokio::test]
    async fn the_end_of_a_controller_comes_after_its_last_record() {
        let captures = Captures::default();
        captures.begin(1, 10, None).unwrap();
        (0..WAITING as u64 + 2).for_each(|trace| drop(captures.offer(&record(10, trace))));
        captures.controllers_gone(|controller| controller == 10);
        let taken = captures.take(1, WAITING - 1, Duration::ZERO).await.unwrap();
        assert_eq!((taken.records.len(), taken.lost, taken.ended), (WAITING - 1, 2, false));
        let taken = captures.take(1, 2, Duration::ZERO).await.unwrap();
        assert_eq!((taken.records.len(), taken.ended), (1, true));
        for key in 2..=MAX_CAPTURES as u64 {
            captures.begin(key, 10, None).unwrap();
        }
        assert_eq!(captures.begin(99, 10, None), Err(NoRoom));
    }
}
