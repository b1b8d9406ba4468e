//! Death before a chosen store of the writer.

use std::cell::Cell;

thread_local! {
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// One store of the writer; the process dies before the one that was chosen.
pub(crate) fn step() {
    LEFT.with(|left| match left.get() {
        Some(0) => {
            left.set(None);
            std::panic::resume_unwind(Box::new("killed"));
        }
        Some(steps) => left.set(Some(steps - 1)),
        None => {}
    });
}

/// Runs `act`, killed before its store number `steps`; `None` if it was.
pub(super) fn after<T>(steps: usize, act: impl FnOnce() -> T) -> Option<T> {
    LEFT.with(|left| left.set(Some(steps)));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
    LEFT.with(|left| left.set(None));
    match done {
        Err(cause) if cause.downcast_ref() != Some(&"killed") => std::panic::resume_unwind(cause),
        other => other.ok(),
    }
}
