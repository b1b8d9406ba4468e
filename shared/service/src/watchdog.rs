//! The keeper's watchdog of a process with threads that its runtime knows nothing of: it is fed only while they are
//! asked, and answer.

use crate::ready;
use std::future::Future;
use std::time::Duration;

/// Feeds the watchdog for as long as `alive` says that every thread of the process makes progress. It is asked four times
/// within the keeper's bound and gets the time within which it must have its answer. Without a watchdog nobody is asked.
/// Never ends.
pub async fn feed_while<F: Future<Output = bool>>(alive: impl FnMut(Duration) -> F) {
    let Some(interval) = ready::watchdog_interval() else {
        return std::future::pending().await;
    };
    feed_every(interval / 2, alive, ready::feed_watchdog).await;
}

/// One answer may take as long as the pause to the next question: two of both are less than four quarters of the
/// keeper's bound.
async fn feed_every<F: Future<Output = bool>>(
    pause: Duration,
    mut alive: impl FnMut(Duration) -> F,
    mut feed: impl FnMut(),
) {
    loop {
        if tokio::time::timeout(pause, alive(pause)).await == Ok(true) {
            feed();
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const PAUSE: Duration = Duration::from_secs(5);

    /// How often the watchdog is fed within ten pauses, by a thread that answers so.
    async fn fed<F: Future<Output = bool>>(alive: impl FnMut(Duration) -> F) -> u32 {
        let fed = Cell::new(0);
        let feeding = feed_every(PAUSE, alive, || fed.set(fed.get() + 1));
        assert!(tokio::time::timeout(10 * PAUSE - PAUSE / 2, feeding).await.is_err());
        fed.get()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_while_answers_come_in_time() {
        assert_eq!(fed(async |_| true).await, 10);
        let slow = async |bound: Duration| {
            tokio::time::sleep(bound / 2).await;
            true
        };
        assert_eq!(fed(slow).await, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_not_fed_for_a_thread_that_says_no_or_nothing() {
        assert_eq!(fed(async |_| false).await, 0);
        assert_eq!(fed(async |_| std::future::pending().await).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_again_by_a_thread_that_goes_on() {
        let asked = Cell::new(0);
        let stalls = async |_| {
            asked.set(asked.get() + 1);
            if asked.get() <= 3 { std::future::pending().await } else { true }
        };
        assert_eq!(fed(stalls).await, 4);
    }
}
