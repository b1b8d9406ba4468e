//! Who waits until nothing of a worker's connections is under way.

use super::{Owner, State};
use service::control::ConnectionId;
use tokio::sync::oneshot;

/// One who waits.
pub(super) struct Drain {
    /// The connections.
    pub connections: Vec<ConnectionId>,
    /// Only this controller's channels; all if `None`.
    pub controller: Option<u128>,
    /// Told then.
    pub done: oneshot::Sender<()>,
}

impl Drain {
    fn concerns(&self, owner: Owner) -> bool {
        self.connections.contains(&owner.connection)
            && self.controller.is_none_or(|controller| controller == owner.controller)
    }
}

impl State {
    /// Answers those who have nothing to wait for any more; how many. A channel counts until it is taken out, which it is
    /// when nothing of it is under way.
    pub(super) fn end_drains(&mut self) -> usize {
        let Self { drains, channels, arriving, .. } = self;
        if drains.is_empty() {
            return 0;
        }
        let before = drains.len();
        let waiting = std::mem::take(drains);
        for drain in waiting {
            let arriving = arriving.iter().map(|(served, _)| served);
            let mut owners = channels.iter().flatten().chain(arriving).map(|served| served.owner);
            if owners.any(|owner| drain.concerns(owner)) {
                // Whoever has given up asks again.
                if !drain.done.is_closed() {
                    drains.push(drain);
                }
            } else {
                drain.done.send(()).ok();
            }
        }
        before - drains.len()
    }
}
