//! Captures of a controller's commands, as the manager asks a worker or a backend for them: answered beside the process's
//! own requests, so that no service has to know of it. A capture lives as long as the connection that asked for it.

use crate::control::{Answer, ConnectionId, Handler, Incoming};
use std::sync::Arc;
use std::time::Duration;
use telemetry::capture::{Captures, MAX_CAPTURES, Taken};
use vireo_proto::handoff::{
    CapturedCommand, CapturedCommands, ReadCapture, StartCapture, reply, request,
};
use vireo_proto::{Failure, id_from_bytes};

/// Most records of one answer: far below what a message can hold.
const RECORDS: usize = 128;
const _: () = assert!(RECORDS * 160 < ipc::handoff::MAX_MESSAGE / 2);
/// Longest wait for an answer: the handler of one connection handles one request after the other.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where commands are captured.
pub trait Source: Send + Sync + 'static {
    /// Captures the next `count` commands of a controller; 0 ends that. False if it is not here.
    fn capture(&self, controller: u128, count: u32) -> bool;

    /// Whether a controller is here.
    fn has(&self, controller: u128) -> bool;
}

/// Where others decide what is captured: a backend, which keeps records of what workers mark.
#[derive(Clone, Copy, Debug)]
pub struct Marked;

impl Source for Marked {
    fn capture(&self, _controller: u128, _count: u32) -> bool {
        true
    }

    fn has(&self, _controller: u128) -> bool {
        true
    }
}

/// A handler with captures beside it.
pub struct Capturing<H, S> {
    inner: Arc<H>,
    source: Arc<S>,
    captures: Arc<Captures>,
}

impl<H: Handler, S: Source> Capturing<H, S> {
    /// Captures of `source`, whose records come through `captures`.
    pub fn new(inner: Arc<H>, source: Arc<S>, captures: Arc<Captures>) -> Self {
        Self { inner, source, captures }
    }

    fn start(&self, connection: ConnectionId, start: &StartCapture) -> Result<Answer, Failure> {
        let controller = id_from_bytes(&start.controller_id)?;
        let context = start.traceparent.parse().ok();
        self.captures.begin(connection.0, controller, context).map_err(|_| {
            Failure::exhausted(format!("{MAX_CAPTURES} captures run here, or one of this caller"))
        })?;
        if !self.source.capture(controller, start.count) {
            self.captures.end(connection.0);
            return Err(Failure::not_found(format!(
                "controller {controller:032x} is not attached"
            )));
        }
        Ok(Answer::done())
    }

    async fn read(&self, connection: ConnectionId, read: ReadCapture) -> Result<Answer, Failure> {
        let patience = Duration::from_millis(read.wait_ms.into()).min(PATIENCE);
        let taken = self.captures.take(connection.0, RECORDS, patience).await;
        let taken = taken.ok_or_else(|| Failure::precondition("nothing is captured"))?;
        let Taken { records, lost, ended } = taken;
        let commands =
            records.iter().map(|record| CapturedCommand { words: record.to_words().into() });
        let body = CapturedCommands { commands: commands.collect(), lost, ended };
        Ok(Answer::new(reply::Body::CapturedCommands(body)))
    }
}

impl<H: Handler, S: Source> Handler for Capturing<H, S> {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        // Another life of a controller is another controller to whoever captures it.
        let leaving = match &request.body {
            request::Body::StartCapture(start) => return self.start(request.connection, start),
            request::Body::ReadCapture(read) => return self.read(request.connection, *read).await,
            request::Body::AttachController(attach) => id_from_bytes(&attach.controller_id).ok(),
            request::Body::DetachController(detach) => id_from_bytes(&detach.controller_id).ok(),
            _ => None,
        };
        if let Some(controller) = leaving {
            self.captures.controllers_gone(|captured| captured == controller);
        }
        self.inner.handle(request).await
    }

    async fn disconnected(&self, connection: ConnectionId) {
        if let Some(controller) = self.captures.end(connection.0) {
            self.source.capture(controller, 0);
        }
        self.inner.disconnected(connection).await;
        self.captures.controllers_gone(|controller| !self.source.has(controller));
    }
}
