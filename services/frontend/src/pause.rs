//! Whether an endpoint's commands are fetched, and whether a namespace's ([`NamespacePauses`]) are sent on. It belongs to the
//! endpoint or the namespace: clients come and go, workers restart, and it stays paused.

mod namespaces;

pub use namespaces::NamespacePauses;

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use vireo_proto::handoff::PauseState;

/// What is wanted of an endpoint or a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its commands are not to be fetched, or not to be sent on.
    pub paused: bool,
    /// Raised by whoever wants something: what was wanted before is forgotten, with its times.
    number: u64,
}

/// The pause of an endpoint or a namespace.
pub struct Pause {
    wanted: watch::Sender<Wanted>,
    /// Nothing is sent on, and nothing is in flight.
    still: watch::Sender<bool>,
}

impl Default for Pause {
    fn default() -> Self {
        // Without a client nothing is in flight.
        Self { wanted: watch::Sender::default(), still: watch::Sender::new(true) }
    }
}

impl Pause {
    /// Pauses. Goes on by itself if commands are still in flight after `settle`, and after `longest`, if that is given.
    /// In a runtime only.
    pub fn begin(self: &Arc<Self>, settle: Duration, longest: Option<Duration>) {
        let number = self.want(true);
        let mut wanted = self.wanted.subscribe();
        let mut still = self.still.subscribe();
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            // An error means that the endpoint is gone, here and below.
            let others =
                async move { wanted.wait_for(|wanted| wanted.number != number).await.is_ok() };
            let ends = async move {
                let settled = timeout(settle, still.wait_for(|still| *still)).await.is_ok();
                match (settled, longest) {
                    (false, _) => {}
                    (true, Some(longest)) => tokio::time::sleep(longest).await,
                    (true, None) => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = others => {}
                () = ends => {
                    if let Some(this) = this.upgrade() {
                        this.end_of(number);
                    }
                }
            }
        });
    }

    /// Goes on.
    pub fn end(&self) {
        self.want(false);
    }

    /// How far it is.
    pub fn state(&self) -> PauseState {
        match (self.wanted.borrow().paused, *self.still.borrow()) {
            (false, _) => PauseState::Running,
            (true, false) => PauseState::Pausing,
            (true, true) => PauseState::Paused,
        }
    }

    /// Whether it is to be paused, whether it is already or not.
    pub fn is_wanted(&self) -> bool {
        self.wanted.borrow().paused
    }

    /// What is wanted, now and later.
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// Says whether nothing is sent on and nothing is in flight: true where there is no client.
    pub fn tell(&self, still: bool) {
        self.still.send_if_modified(|known| std::mem::replace(known, still) != still);
    }

    fn want(&self, paused: bool) -> u64 {
        self.wanted.send_modify(|wanted| {
            *wanted = Wanted { paused, number: wanted.number + 1 };
        });
        self.wanted.borrow().number
    }

    /// Goes on, if nobody wanted anything since.
    fn end_of(&self, number: u64) {
        self.wanted.send_if_modified(|wanted| {
            let same = wanted.number == number;
            wanted.paused &= !same;
            same
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn ends(pause: &Pause) {
        let mut wanted = pause.wanted();
        wanted.wait_for(|wanted| !wanted.paused).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_settle_goes_on() {
        let pause = Arc::new(Pause::default());
        pause.tell(false);
        pause.begin(Duration::from_secs(5), None);
        assert_eq!(pause.state(), PauseState::Pausing);
        timeout(Duration::from_secs(6), ends(&pause)).await.unwrap();
        assert_eq!(pause.state(), PauseState::Running);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_lasts_until_it_is_ended_or_over() {
        let pause = Arc::new(Pause::default());
        pause.begin(Duration::from_secs(5), None);
        assert_eq!(pause.state(), PauseState::Paused);
        assert!(timeout(LONG, ends(&pause)).await.is_err(), "it does not end by itself");
        pause.end();
        assert_eq!(pause.state(), PauseState::Running);
        pause.begin(Duration::ZERO, Some(Duration::from_secs(10)));
        timeout(Duration::from_secs(11), ends(&pause)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn times_of_an_earlier_pause_are_forgotten() {
        let pause = Arc::new(Pause::default());
        pause.begin(Duration::from_secs(5), Some(Duration::from_secs(10)));
        tokio::time::sleep(Duration::from_secs(9)).await;
        pause.begin(Duration::from_secs(5), Some(LONG));
        assert!(timeout(LONG / 2, ends(&pause)).await.is_err());
        timeout(LONG, ends(&pause)).await.unwrap();
    }
}
