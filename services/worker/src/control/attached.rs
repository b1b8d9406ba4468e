//! A controller that this worker serves, as the control thread knows it: its memory, and what backends have of it.

use super::Control;
use ipc::guest_memory::{Region, RegionId};
use ipc::layout::MAX_NAMESPACES;
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use service::control::{ConnectionId, ControlError, Session};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use telemetry::limit::Limit;
use telemetry::spans::Context;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use vireo_proto::handoff::{AddRegion, CloseChannel, RemoveRegion, request};
use vireo_proto::id_to_bytes;

/// A controller.
pub(super) struct Attached {
    /// Over which connection it came; it goes with it.
    pub connection: ConnectionId,
    /// The endpoint's name.
    pub name: String,
    /// The span in which it came.
    pub came_in: Option<Context>,
    /// The controller segment.
    pub layout: Arc<Segment<ControllerLayout>>,
    /// Its memory.
    pub regions: BTreeMap<RegionId, Arc<Region>>,
    /// Who waits for changes, in the order in which they were sent.
    pub waiting: VecDeque<oneshot::Sender<()>>,
    /// Who waits for the controller's end.
    pub detached: Option<oneshot::Sender<()>>,
    /// Channels by [`crate::namespaces::address`].
    pub channels: HashMap<usize, Opened>,
    /// Where in which trace each row's namespace was asked for, if its channel was asked for in that, too.
    pub asked_in: HashMap<usize, Context>,
    /// Tasks that open channels.
    pub openers: JoinSet<()>,
    /// Tasks that watch over the backends of open ones.
    pub watchers: JoinSet<()>,
    shares: HashMap<String, Arc<Share>>,
}

/// Where in which trace a row's namespace was asked for.
pub(super) fn asked_in(layout: &ControllerLayout, row: usize) -> Option<Context> {
    let words = &layout.namespaces.get(row)?.asked_in;
    // Relaxed: who has seen the row's state sees them; a context that was torn is a span in a trace of nobody's.
    Context::from_words(std::array::from_fn(|index| words[index].load(Ordering::Relaxed)))
}

/// An open channel.
#[derive(Clone)]
pub(super) struct Opened {
    /// The backend's process.
    pub session: Session,
    /// The backend's number for it.
    pub channel_id: u64,
}

/// What a backend has of a controller's memory.
#[derive(Default)]
pub(super) struct Share {
    handed: Mutex<Handed>,
}

#[derive(Default)]
struct Handed {
    session: Option<Session>,
    regions: BTreeMap<RegionId, Arc<Region>>,
}

impl Attached {
    /// A controller without memory.
    pub fn new(
        connection: ConnectionId,
        name: String,
        layout: Arc<Segment<ControllerLayout>>,
    ) -> Self {
        Self {
            connection,
            name,
            came_in: telemetry::spans::current(),
            regions: BTreeMap::new(),
            waiting: VecDeque::new(),
            detached: None,
            channels: HashMap::new(),
            // What was there before the controller came is not asked for now.
            asked_in: (0..MAX_NAMESPACES)
                .filter_map(|row| Some((row, asked_in(&layout, row)?)))
                .collect(),
            layout,
            openers: JoinSet::new(),
            watchers: JoinSet::new(),
            shares: HashMap::new(),
        }
    }

    /// What `backend` has of the memory.
    pub fn share(&mut self, backend: &str) -> Arc<Share> {
        Arc::clone(self.shares.entry(backend.to_owned()).or_default())
    }

    /// What all backends have.
    pub fn shares(&self) -> Vec<Arc<Share>> {
        self.shares.values().cloned().collect()
    }

    /// Nothing is in flight any more: closes the channels, takes the memory back from the backends.
    pub async fn release(mut self, id: u128) {
        self.openers.shutdown().await;
        self.watchers.shutdown().await;
        for opened in self.channels.into_values() {
            opened.close().await;
        }
        for share in self.shares.into_values() {
            share.reconcile(id, &BTreeMap::new()).await;
        }
    }
}

impl Opened {
    /// Closes the channel at its backend, if that is still there.
    pub async fn close(self) {
        let body = request::Body::CloseChannel(CloseChannel { channel_id: self.channel_id });
        match self.session.tell(body, &[]).await {
            Ok(_) | Err(ControlError::Closed { .. }) => {}
            Err(error) => {
                static LIMIT: Limit = Limit::per_second(5);
                if let Some(suppressed) = LIMIT.pass() {
                    tracing::warn!(error = error.line(), suppressed, "channel not closed");
                }
            }
        }
    }
}

/// A channel that is granted, and closed again if nobody takes it: its task may be ended at any point of the way.
pub(super) struct Unclaimed(Option<Opened>);

impl Unclaimed {
    /// Of a grant that just came.
    pub fn new(opened: Opened) -> Self {
        Self(Some(opened))
    }

    /// Takes the channel over.
    pub fn claim(mut self) -> Option<Opened> {
        self.0.take()
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(opened) = self.0.take() {
            tokio::spawn(opened.close());
        }
    }
}

impl Share {
    /// Uses `session` from now on and hands it all memory that the controller has.
    pub async fn connect(&self, control: &Control, id: u128, session: &Session) -> bool {
        {
            let mut handed = self.handed.lock().await;
            let same = handed.session.as_ref().is_some_and(|old| !old.is_closed());
            if !same {
                *handed = Handed { session: Some(session.clone()), regions: BTreeMap::new() };
            }
        }
        self.update(control, id).await
    }

    /// Hands the backend what the controller has of memory now. False if it did not take all of it.
    pub async fn update(&self, control: &Control, id: u128) -> bool {
        let mut handed = self.handed.lock().await;
        // Looked at under the lock, so that the last to come hands the newest.
        let wanted = match control.controllers().get(&id) {
            Some(attached) => attached.regions.clone(),
            None => return false,
        };
        handed.reconcile(id, &wanted).await
    }

    async fn reconcile(&self, id: u128, wanted: &BTreeMap<RegionId, Arc<Region>>) {
        self.handed.lock().await.reconcile(id, wanted).await;
    }
}

impl Handed {
    async fn reconcile(&mut self, id: u128, wanted: &BTreeMap<RegionId, Arc<Region>>) -> bool {
        let Some(session) = self.session.clone().filter(|session| !session.is_closed()) else {
            // A backend that starts anew gets all of it with its first channel.
            return false;
        };
        match self.try_reconcile(&session, id, wanted).await {
            Ok(()) => true,
            Err(error) => {
                static LIMIT: Limit = Limit::per_second(5);
                if !matches!(error, ControlError::Closed { .. })
                    && let Some(suppressed) = LIMIT.pass()
                {
                    tracing::warn!(
                        error = error.line(),
                        suppressed,
                        "client memory not shared with the backend"
                    );
                }
                false
            }
        }
    }

    async fn try_reconcile(
        &mut self,
        session: &Session,
        id: u128,
        wanted: &BTreeMap<RegionId, Arc<Region>>,
    ) -> Result<(), ControlError> {
        let surplus: Vec<RegionId> = self
            .regions
            .iter()
            .filter(|(id, old)| !wanted.get(id).is_some_and(|new| Arc::ptr_eq(old, new)))
            .map(|(&id, _)| id)
            .collect();
        for region in surplus {
            let body = RemoveRegion { controller_id: id_to_bytes(id), region_id: region.0 };
            session.tell(request::Body::RemoveRegion(body), &[]).await?;
            self.regions.remove(&region);
        }
        for (&region, memory) in wanted {
            if self.regions.contains_key(&region) {
                continue;
            }
            let (controller_id, region_id, size) = (id_to_bytes(id), region.0, memory.len());
            let body = request::Body::AddRegion(AddRegion { controller_id, region_id, size });
            session.tell(body, &[memory.fd()]).await?;
            self.regions.insert(region, Arc::clone(memory));
        }
        Ok(())
    }
}
