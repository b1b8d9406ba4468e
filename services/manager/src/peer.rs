//! One of the other processes: keeps telling it what it is to serve, until it does.

use crate::pause::Kept;
use service::config::Kind;
use service::control::{Client, ControlError, Session};
use std::sync::Arc;
use std::time::Duration;
use telemetry::spans::{self, Context};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use vireo_proto::handoff::{ApplyTargets, GetStatus, reply, request};

#[cfg(test)]
mod tests;

/// How long a process may take to apply: a frontend waits half a minute for the last commands of a removed namespace.
const APPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// First pause after a failure; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause after a failure.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// How far a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is not there.
    Away,
    /// It is there and has not answered yet, or has nothing to answer to.
    Present,
    /// It has applied document number `document`, but for the failures, one line each.
    Applied { document: u64, failures: Vec<String> },
}

/// A process and the task that talks to it, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    client: Arc<Client>,
    wanted: watch::Sender<Option<Wanted>>,
    outcome: watch::Receiver<Outcome>,
    again: Arc<Notify>,
    kept: Arc<Kept>,
    task: AbortHandle,
}

#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    document: u64,
    body: request::Body,
    asked_in: Option<Context>,
}

impl Peer {
    /// Starts to connect. `stirred` is notified whenever the outcome is another one.
    pub(crate) fn start(
        kind: Kind,
        name: &str,
        socket: &std::path::Path,
        sender: &str,
        stirred: Arc<Notify>,
    ) -> Self {
        let client = Arc::new(Client::new(socket, sender));
        let (wanted, told) = watch::channel(None);
        let (tell, outcome) = watch::channel(Outcome::Away);
        let again = Arc::new(Notify::new());
        let kept = Arc::new(Kept::default());
        let talk = Talk {
            label: format!("{kind} {name}"),
            sessions: client.watch(),
            wanted: told,
            outcome: tell,
            again: Arc::clone(&again),
            kept: Arc::clone(&kept),
            stirred,
        };
        let task = tokio::spawn(talk.run()).abort_handle();
        Self { kind, name: name.to_owned(), client, wanted, outcome, again, kept, task }
    }

    /// Makes `body` what the process is to serve, for a request `asked_in`; does nothing if it is already.
    pub(crate) fn want(&self, body: request::Body, asked_in: Option<Context>) {
        if let request::Body::ApplyTargets(targets) = &body {
            self.kept.retain(targets);
        }
        self.wanted.send_if_modified(|wanted| {
            let document = match wanted {
                Some(old) if old.body == body => return false,
                Some(old) => old.document + 1,
                None => 1,
            };
            *wanted = Some(Wanted { document, body, asked_in });
            true
        });
    }

    /// Tries again at once what has failed.
    pub(crate) fn retry(&self) {
        self.again.notify_one();
    }

    /// How far the process is with what is wanted now.
    pub(crate) fn outcome(&self) -> Outcome {
        let wanted = self.wanted.borrow().as_ref().map(|wanted| wanted.document);
        match self.outcome.borrow().clone() {
            Outcome::Applied { document, .. } if Some(document) != wanted => Outcome::Present,
            outcome => outcome,
        }
    }

    /// Pauses that it is asked for again when it starts anew.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The present connection.
    pub(crate) fn session(&self) -> Option<Session> {
        self.client.current()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Talk {
    label: String,
    sessions: watch::Receiver<Option<Session>>,
    wanted: watch::Receiver<Option<Wanted>>,
    outcome: watch::Sender<Outcome>,
    again: Arc<Notify>,
    kept: Arc<Kept>,
    stirred: Arc<Notify>,
}

impl Talk {
    /// Tells every new process, everything new, and again what failed. Ends when the peer is dropped.
    async fn run(mut self) {
        let mut backoff = MIN_BACKOFF;
        // What a predecessor applied says nothing of a process that was told nothing yet.
        let mut fresh = true;
        // A process that starts anew has forgotten its pauses.
        let mut forgot = false;
        loop {
            // Whatever woke this task: another process may have come at the same time.
            fresh |= self.sessions.has_changed().unwrap_or(true);
            let session = self.sessions.borrow_and_update().clone().filter(|s| !s.is_closed());
            let Some(session) = session else {
                self.tell(Outcome::Away);
                (backoff, fresh) = (MIN_BACKOFF, true);
                if self.sessions.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let wanted = self.wanted.borrow_and_update().clone();
            let mut clean = true;
            match wanted {
                None => self.tell(Outcome::Present),
                Some(Wanted { document, body, asked_in }) => {
                    if std::mem::take(&mut fresh) {
                        self.tell(Outcome::Present);
                        forgot = true;
                        self.hold_before_clients(&session, &body).await;
                    }
                    let failures = spans::within(asked_in, apply(&session, body)).await;
                    if session.is_closed() {
                        fresh = true;
                        continue;
                    }
                    clean = failures.is_empty();
                    forgot = forgot && !self.kept.ask_again(&session, clean).await;
                    self.tell(Outcome::Applied { document, failures });
                }
            }
            tokio::select! {
                changed = self.sessions.changed() => {
                    if changed.is_err() { return }
                    fresh = true;
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() { return }
                    backoff = MIN_BACKOFF;
                }
                () = session.closed() => fresh = true,
                () = self.again.notified(), if !clean => {}
                () = tokio::time::sleep(backoff), if !clean => {
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
            if clean {
                backoff = MIN_BACKOFF;
            }
        }
    }

    /// Has a frontend that starts anew pause what is to be paused before it has endpoints, so that no client gets on with
    /// it. What fails is tried again with the rest.
    async fn hold_before_clients(&self, session: &Session, body: &request::Body) {
        let request::Body::ApplyTargets(targets) = body else { return };
        if self.kept.is_empty() || !serves_nothing(session).await {
            return;
        }
        let subsystems = ApplyTargets { endpoints: Vec::new(), ..targets.clone() };
        apply(session, request::Body::ApplyTargets(subsystems)).await;
        self.kept.ask_again(session, false).await;
    }

    fn tell(&self, outcome: Outcome) {
        let changed = self.outcome.send_if_modified(|old| {
            let changed = *old != outcome;
            *old = outcome;
            changed
        });
        if !changed {
            return;
        }
        match &*self.outcome.borrow() {
            Outcome::Away => tracing::info!(process = self.label, "away"),
            Outcome::Present => tracing::info!(process = self.label, "there"),
            Outcome::Applied { failures, .. } if failures.is_empty() => {
                tracing::info!(process = self.label, "serves what it should");
            }
            Outcome::Applied { failures, .. } => {
                for reason in failures {
                    tracing::warn!(process = self.label, reason, "not as wanted");
                }
            }
        }
        self.stirred.notify_one();
    }
}

/// Whether a process says that it serves nothing.
async fn serves_nothing(session: &Session) -> bool {
    let body = request::Body::GetStatus(GetStatus {});
    match session.call(body, &[]).await.map(|answer| answer.body) {
        Ok(reply::Body::ProcessStatus(status)) => status.items.is_empty(),
        _ => false,
    }
}

async fn apply(session: &Session, body: request::Body) -> Vec<String> {
    let result = match session.call_within(APPLY_TIMEOUT, body, &[]).await {
        Ok(answer) => match answer.body {
            reply::Body::ApplyResult(result) => Ok(result),
            _ => Err(session.unexpected("an apply result")),
        },
        Err(error) => Err(error),
    };
    match result {
        Ok(result) => result
            .failures
            .into_iter()
            .map(|failure| format!("{}: {}", failure.object, failure.message))
            .collect(),
        Err(ControlError::Refused(failure)) => vec![failure.message().to_owned()],
        Err(error) => vec![error.line()],
    }
}
