//! Pausing controllers and namespaces, and letting them go on. What is paused is known to frontends: it is what is, not what is
//! wanted, and lasts as long as the endpoint or the namespace. What was asked for is kept beside that (`kept`), for a
//! frontend that starts anew.

mod kept;

pub(crate) use kept::Kept;

use crate::counters;
use crate::object::Object;
use crate::peer::Peer;
use crate::status;
use service::config::{Config, Kind};
use service::control::{ControlError, Session};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use vireo_proto::handoff::{
    PauseEndpoint, PauseNamespace, PauseState, ReadNamespace, ResumeEndpoint, ResumeNamespace,
    reply, request,
};

/// First and longest pause between two looks at how far it is.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How long a frontend may take to let something go on, or to take a pause back, beyond the time that it was given.
const SLACK: Duration = Duration::from_secs(5);
/// How long a frontend may take to say how far a namespace is.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a controller or a namespace is not paused, or does not go on.
#[derive(Debug)]
pub enum PauseError {
    /// Commands were in flight for too long. It goes on.
    InFlight,
    /// Its frontend is not there, or refuses; in one line.
    Unavailable(String),
}

/// What can be paused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pausable {
    /// A controller, by its name.
    Controller(String),
    /// A namespace.
    Namespace {
        /// Its subsystem.
        subsystem: String,
        /// Namespace identifier.
        nsid: u32,
    },
}

impl Pausable {
    /// `None` for an object that cannot be paused.
    pub(crate) fn of(object: &Object) -> Option<Self> {
        match object.clone() {
            Object::Controller(name) => Some(Self::Controller(name)),
            Object::Namespace { subsystem, nsid } => Some(Self::Namespace { subsystem, nsid }),
            Object::Volume(_) | Object::Subsystem(_) => None,
        }
    }
}

impl From<ControlError> for PauseError {
    fn from(error: ControlError) -> Self {
        Self::Unavailable(error.line())
    }
}

/// Pauses a controller or a namespace: returns when nothing of it is in flight.
///
/// # Errors
/// [`PauseError`]; it goes on then, if its frontend lives.
pub(crate) async fn pause(
    config: &Config,
    peers: &[Peer],
    object: &Pausable,
    settle: Duration,
    longest: Option<Duration>,
) -> Result<(), PauseError> {
    let frontend = frontend(config, peers, object).map_err(PauseError::Unavailable)?;
    let session = session(frontend).map_err(PauseError::Unavailable)?;
    session.tell(request_of(object, settle, longest), &[]).await?;
    let ended = settled(config, peers, object, settle).await;
    match ended {
        Ok(()) => frontend.kept().keep(object, longest),
        Err(PauseError::InFlight) => frontend.kept().forget(object),
        // It is not known.
        Err(PauseError::Unavailable(_)) => {}
    }
    ended
}

/// What asks a frontend to pause something.
fn request_of(object: &Pausable, settle: Duration, longest: Option<Duration>) -> request::Body {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let (settle_ns, longest_ns) = (nanoseconds(settle), longest.map_or(0, nanoseconds));
    match object {
        Pausable::Namespace { subsystem, nsid } => {
            let (subsystem, nsid) = (subsystem.clone(), *nsid);
            let pause = PauseNamespace { subsystem, nsid, settle_ns, longest_ns };
            request::Body::PauseNamespace(pause)
        }
        Pausable::Controller(name) => {
            let pause = PauseEndpoint { endpoint: name.clone(), settle_ns, longest_ns };
            request::Body::PauseEndpoint(pause)
        }
    }
}

/// Waits until nothing of what is to be paused is in flight.
async fn settled(
    config: &Config,
    peers: &[Peer],
    object: &Pausable,
    settle: Duration,
) -> Result<(), PauseError> {
    let deadline = Instant::now() + settle + SLACK;
    let mut look = LOOKS.0;
    while Instant::now() < deadline {
        match state(config, peers, object).await.map_err(PauseError::Unavailable)? {
            PauseState::Paused => return Ok(()),
            PauseState::Pausing => {}
            PauseState::Running | PauseState::Unspecified => return Err(PauseError::InFlight),
        }
        tokio::time::sleep(look).await;
        look = (look * 2).min(LOOKS.1);
    }
    resume(config, peers, object).await?;
    Err(PauseError::InFlight)
}

/// Lets a controller or a namespace go on.
///
/// # Errors
/// [`PauseError::Unavailable`].
pub(crate) async fn resume(
    config: &Config,
    peers: &[Peer],
    object: &Pausable,
) -> Result<(), PauseError> {
    let frontend = frontend(config, peers, object).map_err(PauseError::Unavailable)?;
    // First, or a frontend that comes back at this moment would be asked again after it was resumed.
    frontend.kept().forget(object);
    let session = session(frontend).map_err(PauseError::Unavailable)?;
    let body = match object {
        Pausable::Namespace { subsystem, nsid } => {
            let (subsystem, nsid) = (subsystem.clone(), *nsid);
            request::Body::ResumeNamespace(ResumeNamespace { subsystem, nsid })
        }
        Pausable::Controller(name) => {
            request::Body::ResumeEndpoint(ResumeEndpoint { endpoint: name.clone() })
        }
    };
    session.tell(body, &[]).await?;
    Ok(())
}

/// Whether commands of a controller or a namespace are sent on.
///
/// # Errors
/// Why its frontend does not say so, in one line.
pub(crate) async fn state(
    config: &Config,
    peers: &[Peer],
    object: &Pausable,
) -> Result<PauseState, String> {
    let session = session(frontend(config, peers, object)?)?;
    match object {
        Pausable::Namespace { subsystem, nsid } => {
            let read = ReadNamespace { subsystem: subsystem.clone(), nsid: *nsid };
            let body = request::Body::ReadNamespace(read);
            match session.call_within(TIMEOUT, body, &[]).await.map(|answer| answer.body) {
                Ok(reply::Body::NamespaceReport(report)) => Ok(report.pause_state()),
                Ok(_) => Err(session.unexpected("a namespace's report").line()),
                Err(error) => Err(error.line()),
            }
        }
        Pausable::Controller(name) => {
            // Without counters.
            let report = counters::read_piece(&session, name, u32::MAX).await;
            report.map(|report| report.pause_state())
        }
    }
}

/// The frontend of a controller or a namespace.
fn frontend<'a>(config: &Config, peers: &'a [Peer], object: &Pausable) -> Result<&'a Peer, String> {
    match object {
        Pausable::Namespace { subsystem, .. } => {
            counters::frontend(peers, config.subsystem(subsystem))
        }
        Pausable::Controller(name) => counters::frontend_of(config, peers, name),
    }
}

fn session(frontend: &Peer) -> Result<Session, String> {
    frontend.session().ok_or_else(|| format!("frontend {} is not there", frontend.name))
}

/// What frontends say of pauses.
#[derive(Default)]
pub(crate) struct Overview {
    /// Controllers of which they say anything.
    pub(crate) controllers: BTreeSet<String>,
    /// Of these, the ones that are paused or about to be.
    pub(crate) paused_controllers: BTreeSet<String>,
    /// Namespaces of which they say anything, as `s0/1`.
    pub(crate) namespaces: BTreeSet<String>,
    /// Of these, the ones that are paused or about to be.
    pub(crate) paused_namespaces: BTreeSet<String>,
}

/// Asks all frontends.
pub(crate) async fn overview(peers: &[Peer]) -> Overview {
    let mut overview = Overview::default();
    let processes = status::of_kind(peers, Kind::Frontend).await;
    for item in processes.into_iter().flat_map(|process| process.items) {
        let (all, paused) = match item.kind.as_str() {
            "endpoint" => (&mut overview.controllers, &mut overview.paused_controllers),
            "namespace" => (&mut overview.namespaces, &mut overview.paused_namespaces),
            _ => continue,
        };
        if item.paused {
            paused.insert(item.name.clone());
        }
        all.insert(item.name);
    }
    overview
}
