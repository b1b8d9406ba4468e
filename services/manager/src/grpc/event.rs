//! What happens, to those who watch.

use super::stats::MAX_NAMES;
use super::time::timestamp;
use super::{Api, error};
use crate::event::{Event, Kind, Numbered};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use vireo_api::v1;
use vireo_api::v1::event_service_server::EventService;
use vireo_api::v1::{EventKind, WatchEventsRequest, WatchEventsResponse};

/// Answers that wait for a slow watcher; the events behind them wait where they are kept.
const WAITING: usize = 16;

#[tonic::async_trait]
impl EventService for Api {
    type WatchEventsStream = ReceiverStream<Result<WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        if request.names.len() > MAX_NAMES {
            let text = format!("{} are too many; name at most {MAX_NAMES}", request.names.len());
            return Err(error::invalid("names", text));
        }
        let permit = watcher(self)?;
        let mut newest = self.manager.events().watch();
        let mut seen = match request.after_sequence {
            0 => *newest.borrow_and_update(),
            sequence => sequence,
        };
        let (give, answers) = mpsc::channel(WAITING);
        let manager = Arc::clone(&self.manager);
        tokio::spawn(async move {
            let _permit = permit;
            loop {
                let (lost, events) = manager.events().after(seen);
                let first = events.first().map_or(*newest.borrow(), |event| event.sequence - 1);
                let gap = lost.then(|| lost_event(first));
                seen = events.last().map_or(seen.max(if lost { first } else { 0 }), |e| e.sequence);
                let wanted = events.into_iter().map(event).filter(|event| {
                    request.names.is_empty() || request.names.contains(&event.name)
                });
                for event in gap.into_iter().chain(wanted) {
                    let answer = Ok(WatchEventsResponse { event: Some(event) });
                    if give.send(answer).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { return },
                    () = give.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// Room for one more who watches.
pub(super) fn watcher(api: &Api) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(&api.watchers).try_acquire_owned().map_err(|_| {
        let text = "too many callers watch already: end one, and try again";
        error::refuse(Code::ResourceExhausted, error::reason::TOO_MUCH, text)
    })
}

fn lost_event(sequence: u64) -> v1::Event {
    v1::Event {
        sequence,
        time: Some(timestamp(SystemTime::now())),
        kind: EventKind::Lost.into(),
        name: "target".to_owned(),
        message: "earlier events are not kept any more".to_owned(),
    }
}

fn event(Numbered { sequence, time, event }: Numbered) -> v1::Event {
    let Event { kind, name, message } = event;
    let kind = match kind {
        Kind::Created => EventKind::Created,
        Kind::Updated => EventKind::Updated,
        Kind::Deleted => EventKind::Deleted,
        Kind::Ready => EventKind::Ready,
        Kind::Failed => EventKind::Failed,
        Kind::Connected => EventKind::Connected,
        Kind::Disconnected => EventKind::Disconnected,
    };
    v1::Event { sequence, time: Some(timestamp(time)), kind: kind.into(), name, message }
}
