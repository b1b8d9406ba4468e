//! Whether the drive interrupts the holder of a lease: while it sleeps over its commands now and then. One that polls is
//! left alone, since an interrupt costs its sender, and the processor that takes it, more than a command does.
//!
//! Each side says what it does, fences, and then looks at what the other says. So interrupts are not switched off under a
//! holder that sleeps on them.

use ipc::layout::drive_lease::DriveLeaseLayout;
use nvme_driver::Error;
use std::sync::atomic::{Ordering, fence};

/// After so many looks at a holder that was busy and did not sleep it is taken to poll: a second, as often as is looked.
const POLLS: u32 = 20;

/// The interrupts of a lease.
pub(super) struct Alarm {
    /// They can be switched.
    usable: bool,
    on: bool,
    /// The holder's count of sleeps when it was looked at last.
    sleeps: u32,
    /// Looks since then at which it was busy.
    polls: u32,
}

impl Alarm {
    /// Of interrupts that are off, if there are any.
    pub fn new(usable: bool) -> Self {
        Self { usable, on: false, sleeps: 0, polls: 0 }
    }

    /// Looks at the holder, and switches its interrupts by `switch` if need be.
    pub fn look(
        &mut self,
        segment: &DriveLeaseLayout,
        switch: impl FnOnce(bool) -> Result<(), Error>,
    ) {
        if !self.usable {
            return;
        }
        let (lender, holder) = (&segment.lender, &segment.holder);
        // Relaxed, all: only decide what is worth while, but where the fence stands.
        let busy = holder.busy.load(Ordering::Relaxed) != 0;
        let wanted = self.wanted(holder.sleeps.load(Ordering::Relaxed), busy);
        if wanted == self.on {
            return;
        }
        if !wanted {
            lender.interrupts.store(0, Ordering::Relaxed);
            // Pairs with the holder's between its `sleeps` and its look at `interrupts`.
            fence(Ordering::SeqCst);
            if self.has_slept(holder.sleeps.load(Ordering::Relaxed)) {
                // Release: as below; nothing was switched.
                lender.interrupts.store(1, Ordering::Release);
                return;
            }
        }
        match switch(wanted) {
            Ok(()) => self.on = wanted,
            Err(error) => {
                tracing::warn!(%error, "interrupts of a leased queue pair cannot be switched, a worker looks for itself");
                (self.usable, self.on) = (false, false);
            }
        }
        // Release: pairs with the holder's Acquire; completions from here on signal.
        lender.interrupts.store(self.on.into(), Ordering::Release);
    }

    /// Whether there are to be interrupts.
    fn wanted(&mut self, sleeps: u32, busy: bool) -> bool {
        if self.has_slept(sleeps) {
            (self.sleeps, self.polls) = (sleeps, 0);
            return true;
        }
        self.polls += u32::from(self.on && busy);
        self.on && self.polls < POLLS
    }

    fn has_slept(&self, sleeps: u32) -> bool {
        sleeps != self.sleeps || sleeps & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::segment::Segment;
    use std::cell::RefCell;

    fn segment() -> Segment<DriveLeaseLayout> {
        Segment::create("lease", 1).unwrap()
    }

    #[test]
    fn whoever_sleeps_gets_interrupts_and_whoever_polls_gets_rid_of_them() {
        let segment = segment();
        let (holder, said) = (&segment.holder, &segment.lender.interrupts);
        let switched = RefCell::new(Vec::new());
        let mut alarm = Alarm::new(true);
        let mut look = || {
            alarm.look(&segment, |on| {
                switched.borrow_mut().push(on);
                Ok(())
            });
            said.load(Ordering::Relaxed)
        };
        holder.busy.store(1, Ordering::Relaxed);
        assert!((0..2 * POLLS).all(|_| look() == 0), "it polls");
        // It sleeps, wakes, and sleeps again between any two looks.
        holder.sleeps.store(1, Ordering::Relaxed);
        assert!((0..2 * POLLS).all(|_| look() == 1), "it sleeps");
        for sleeps in 1..2 * POLLS {
            holder.sleeps.store(2 * sleeps, Ordering::Relaxed);
            assert_eq!(look(), 1);
        }
        assert!((1..POLLS).all(|_| look() == 1), "not yet");
        holder.busy.store(0, Ordering::Relaxed);
        assert!((0..2 * POLLS).all(|_| look() == 1), "nothing is interrupted");
        holder.busy.store(1, Ordering::Relaxed);
        assert_eq!(look(), 0);
        holder.sleeps.store(7, Ordering::Relaxed);
        assert_eq!(look(), 1);
        assert_eq!(*switched.borrow(), [true, false, true]);
    }

    #[test]
    fn what_cannot_be_switched_is_not_promised() {
        let segment = segment();
        let mut alarm = Alarm::new(true);
        segment.holder.sleeps.store(1, Ordering::Relaxed);
        alarm.look(&segment, |_| Err(Error::Gone));
        assert_eq!(segment.lender.interrupts.load(Ordering::Relaxed), 0);
        alarm.look(&segment, |_| panic!("it is asked once"));
        Alarm::new(false).look(&segment, |_| panic!("there is none"));
    }
}
