//! Interrupt vectors of one controller: their eventfds, latches and coalescing. NVMe Base 2.0c 5.27.1.6, 5.27.1.7.
//!
//! A vector without an eventfd latches: it fires once when it gets one.

use crate::notify::{Notifier, Stuck};
use ipc::event::EventFd;
use ipc::layout::MAX_VECTORS;
use ipc::layout::controller::Settings;
use std::sync::atomic::Ordering;

/// Nanoseconds of the unit of Aggregation Time (TIME).
const TIME_UNIT: u64 = 100_000;

/// A vector.
#[derive(Default)]
struct Vector {
    event: Option<EventFd>,
    latched: bool,
    /// When the oldest completion that was not signalled came, if coalescing holds it back.
    held_since: Option<u64>,
}

/// How completions are aggregated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Coalescing {
    /// Completions that make an interrupt.
    threshold: u64,
    /// Longest delay in nanoseconds; 0 for no coalescing.
    time: u64,
    /// Vectors without, by bit.
    disabled: u128,
}

/// All vectors.
pub struct Vectors {
    vectors: Vec<Vector>,
    coalescing: Coalescing,
}

impl Default for Vectors {
    fn default() -> Self {
        Self {
            vectors: (0..MAX_VECTORS).map(|_| Vector::default()).collect(),
            coalescing: Coalescing::default(),
        }
    }
}

impl Vectors {
    /// Takes in features 08h and 09h.
    pub fn load(&mut self, settings: &Settings) {
        let threshold = settings.coalescing_threshold.load(Ordering::Relaxed);
        let time = settings.coalescing_time.load(Ordering::Relaxed);
        let disabled: [u64; 2] =
            std::array::from_fn(|half| settings.coalescing_disabled[half].load(Ordering::Relaxed));
        self.coalescing = Coalescing {
            threshold: u64::from(threshold) + 1,
            time: u64::from(time).saturating_mul(TIME_UNIT),
            disabled: u128::from(disabled[0]) | u128::from(disabled[1]) << 64,
        };
    }

    /// Gives eventfds to the vectors from `start` on, or takes them away. Returns the old ones.
    ///
    /// # Errors
    /// [`Stuck`] if a latched vector could not be signalled.
    pub fn set(
        &mut self,
        start: usize,
        mut events: Vec<Option<EventFd>>,
        notifier: &mut impl Notifier,
    ) -> Result<Vec<Option<EventFd>>, Stuck> {
        let mut result = Ok(());
        for (vector, event) in self.vectors.iter_mut().skip(start).zip(&mut events) {
            std::mem::swap(&mut vector.event, event);
            if vector.latched
                && let Some(event) = &vector.event
            {
                vector.latched = false;
                result = result.and(notifier.signal(event));
            }
        }
        result.map(|()| events)
    }

    /// Forgets what is latched and held back: the queues are gone.
    pub fn reset(&mut self) {
        for vector in &mut self.vectors {
            (vector.latched, vector.held_since) = (false, None);
        }
    }

    /// Whether the vector has an eventfd.
    #[inline]
    pub fn is_connected(&self, number: usize) -> bool {
        self.vectors.get(number).is_some_and(|vector| vector.event.is_some())
    }

    /// Signals a vector, or latches it.
    ///
    /// # Errors
    /// [`Stuck`].
    pub fn signal(&mut self, number: usize, notifier: &mut impl Notifier) -> Result<(), Stuck> {
        let Some(vector) = self.vectors.get_mut(number) else { return Ok(()) };
        vector.held_since = None;
        match &vector.event {
            Some(event) => notifier.signal(event),
            None => {
                vector.latched = true;
                Ok(())
            }
        }
    }

    /// Whether `unreaped` completions of a vector are to wait for more.
    pub fn holds_back(&mut self, number: usize, unreaped: u64, now: u64) -> bool {
        let Coalescing { threshold, time, disabled } = self.coalescing;
        let Some(vector) = self.vectors.get_mut(number) else { return false };
        if time == 0 || unreaped >= threshold || disabled & 1 << (number % MAX_VECTORS) != 0 {
            return false;
        }
        let since = *vector.held_since.get_or_insert(now);
        now.saturating_sub(since) < time
    }

    /// Nothing of a vector is held back any more: the guest has reaped it.
    pub fn let_go(&mut self, number: usize) {
        if let Some(vector) = self.vectors.get_mut(number) {
            vector.held_since = None;
        }
    }
}
