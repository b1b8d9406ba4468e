//! Pauses of a subsystem's namespaces, on all its controllers: those that have a client say when nothing of a paused
//! namespace is in flight, the others have nothing.

use super::Pause;
use crate::subsystem::SharedSubsystem;
use nvme::SubsystemError;
use nvme_spec::{ControllerId, Nsid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vireo_proto::handoff::PauseState;

/// Pauses of a subsystem's namespaces. Its lock is taken before the subsystem's own.
#[derive(Default)]
pub struct NamespacePauses {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Controllers that have a client, or something of their last one in flight.
    served: BTreeSet<ControllerId>,
    paused: BTreeMap<Nsid, Held>,
}

/// A namespace that is paused, or about to go on.
struct Held {
    pause: Arc<Pause>,
    /// Controllers that may have something of it in flight.
    restless: BTreeSet<ControllerId>,
}

impl Held {
    fn note(&mut self, id: ControllerId, still: bool) {
        if still {
            self.restless.remove(&id);
        } else {
            self.restless.insert(id);
        }
        self.pause.tell(self.restless.is_empty());
    }
}

impl NamespacePauses {
    /// A client comes to a controller.
    pub fn enter(&self, id: ControllerId) {
        let mut state = self.lock();
        state.served.insert(id);
        state.paused.values_mut().for_each(|held| held.note(id, false));
    }

    /// Nothing of a controller's last client is in flight.
    pub fn leave(&self, id: ControllerId) {
        let mut state = self.lock();
        state.served.remove(&id);
        state.paused.values_mut().for_each(|held| held.note(id, true));
    }

    /// Takes over what a controller that has a client says of each paused namespace: whether nothing of it is in flight.
    pub fn look(&self, id: ControllerId, is_still: impl Fn(Nsid) -> bool) {
        let mut state = self.lock();
        state.paused.iter_mut().for_each(|(&nsid, held)| held.note(id, is_still(nsid)));
    }

    /// How far a namespace is.
    pub fn state(&self, nsid: Nsid) -> PauseState {
        self.lock().paused.get(&nsid).map_or(PauseState::Running, |held| held.pause.state())
    }

    /// Namespaces that are paused, or about to be.
    pub fn paused(&self) -> BTreeSet<Nsid> {
        let state = self.lock();
        let paused = state.paused.iter().filter(|(_, held)| held.pause.is_wanted());
        paused.map(|(&nsid, _)| nsid).collect()
    }

    /// A namespace is gone, and its pause with it.
    pub(crate) fn forget(&self, nsid: Nsid) {
        self.lock().paused.remove(&nsid);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedSubsystem {
    /// Pauses a namespace on all controllers. Goes on by itself if commands of it are still in flight after `settle`, and
    /// after `longest`, if that is given. In a runtime only.
    ///
    /// # Errors
    /// No such namespace.
    pub fn pause_namespace(
        self: &Arc<Self>,
        nsid: Nsid,
        settle: Duration,
        longest: Option<Duration>,
    ) -> Result<(), SubsystemError> {
        let mut state = self.pauses().lock();
        self.lock().pause_namespace(nsid)?;
        let served = state.served.clone();
        let mut ends = None;
        let held = state.paused.entry(nsid).or_insert_with(|| {
            let pause = Arc::new(Pause::default());
            pause.tell(served.is_empty());
            ends = Some(pause.wanted());
            Held { pause, restless: served }
        });
        held.pause.begin(settle, longest);
        drop(state);
        self.announce_change();
        if let Some(mut ends) = ends {
            let this = Arc::downgrade(self);
            tokio::spawn(async move {
                // An error means that the namespace is gone.
                while ends.wait_for(|wanted| !wanted.paused).await.is_ok() {
                    if this.upgrade().is_none_or(|this| this.let_go_on(nsid)) {
                        break;
                    }
                }
            });
        }
        Ok(())
    }

    /// Goes on with a namespace that is paused; nothing happens to any other.
    ///
    /// # Errors
    /// No such namespace.
    pub fn resume_namespace(&self, nsid: Nsid) -> Result<(), SubsystemError> {
        if self.lock().namespace(nsid).is_none() {
            return Err(SubsystemError::Missing(nsid.0));
        }
        if let Some(held) = self.pauses().lock().paused.get(&nsid) {
            held.pause.end();
        }
        self.let_go_on(nsid);
        Ok(())
    }

    /// Goes on with a namespace unless it is to be paused; false if it is.
    fn let_go_on(&self, nsid: Nsid) -> bool {
        let mut state = self.pauses().lock();
        match state.paused.get(&nsid) {
            None => return true,
            Some(held) if held.pause.is_wanted() => return false,
            Some(_) => {}
        }
        state.paused.remove(&nsid);
        self.lock().resume_namespace(nsid);
        drop(state);
        self.announce_change();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use nvme::{NamespaceConfig, Protection, Subsystem, SubsystemConfig};
    use tokio::time::timeout;

    const LONG: Duration = Duration::from_secs(3600);
    const NSID: Nsid = Nsid(2);
    const VM0: ControllerId = ControllerId(1);
    const VM1: ControllerId = ControllerId(2);

    fn subsystem(directory: &std::path::Path) -> Arc<SharedSubsystem> {
        let config = SubsystemConfig {
            nqn: "nqn.2026-11.org.example:s0".to_owned(),
            serial: "SERIAL".to_owned(),
            model: "Model".to_owned(),
            firmware: "1".to_owned(),
            shared: true,
        };
        let store = Store::open(directory, "s0").unwrap();
        let mut subsystem = Subsystem::new(config).unwrap();
        let namespace = NamespaceConfig {
            nsid: NSID,
            backend: "b0".to_owned(),
            bdev: "mem0".to_owned(),
            size: 1 << 20,
            block_shift: 9,
            read_only: false,
            force_ring: false,
            deallocated_zeroes: true,
            protection: Protection::None,
        };
        subsystem.add_namespace(namespace).unwrap();
        Arc::new(SharedSubsystem::new("s0".to_owned(), subsystem, store))
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_is_still_when_every_controller_with_a_client_is() {
        let directory = tempfile::tempdir().unwrap();
        let shared = subsystem(directory.path());
        let pauses = shared.pauses();
        pauses.enter(VM0);
        pauses.enter(VM1);
        let changes = shared.changes();
        shared.pause_namespace(NSID, LONG, None).unwrap();
        assert_eq!((pauses.state(NSID), *changes.borrow()), (PauseState::Pausing, 1));
        pauses.look(VM0, |_| true);
        pauses.look(VM1, |_| false);
        assert_eq!(pauses.state(NSID), PauseState::Pausing);
        pauses.leave(VM1);
        assert_eq!(pauses.state(NSID), PauseState::Paused);
        assert_eq!(pauses.paused(), [NSID].into());
        pauses.enter(VM1);
        assert_eq!(pauses.state(NSID), PauseState::Pausing, "it has not said anything yet");
        pauses.look(VM1, |_| true);
        assert_eq!(pauses.state(NSID), PauseState::Paused);
        assert_eq!(pauses.state(Nsid(1)), PauseState::Running);
        shared.resume_namespace(NSID).unwrap();
        assert_eq!((pauses.state(NSID), *changes.borrow()), (PauseState::Running, 2));
        shared.resume_namespace(NSID).unwrap();
        assert_eq!(*changes.borrow(), 2, "nothing happens to one that is not paused");
        assert!(shared.pause_namespace(Nsid(1), LONG, None).is_err());
        assert!(shared.resume_namespace(Nsid(1)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_over_is_told_to_the_controllers() {
        let directory = tempfile::tempdir().unwrap();
        let shared = subsystem(directory.path());
        let mut changes = shared.changes();
        let settle = Duration::from_secs(5);
        for (client, longest) in [(false, Some(settle)), (true, None)] {
            if client {
                // Its commands do not end.
                shared.pauses().enter(VM0);
            }
            let before = *changes.borrow_and_update();
            shared.pause_namespace(NSID, settle, longest).unwrap();
            let end = changes.wait_for(|&change| change == before + 2);
            timeout(settle * 2, end).await.expect("it ends by itself").unwrap();
            assert_eq!(shared.pauses().state(NSID), PauseState::Running);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_repeated_begins_anew_and_goes_with_its_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let shared = subsystem(directory.path());
        shared.pause_namespace(NSID, LONG, Some(Duration::from_secs(10))).unwrap();
        tokio::time::sleep(Duration::from_secs(9)).await;
        shared.pause_namespace(NSID, LONG, None).unwrap();
        tokio::time::sleep(LONG).await;
        assert_eq!(shared.pauses().state(NSID), PauseState::Paused);
        shared.remove_namespace(NSID).unwrap();
        assert_eq!(shared.pauses().state(NSID), PauseState::Running);
        assert!(shared.pauses().paused().is_empty());
    }
}
