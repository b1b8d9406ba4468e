//! Pausing controllers and letting them go on. What is paused is known to frontends alone: it is what is, not what is
//! wanted, and lasts as long as the endpoint.

use crate::counters;
use crate::peer::Peer;
use crate::status;
use service::config::{Config, Kind};
use service::control::ControlError;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use vireo_proto::handoff::{PauseEndpoint, PauseState, ResumeEndpoint, request};

/// First and longest pause between two looks at how far an endpoint is.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// How long a frontend may take to let an endpoint go on, or to take a pause back, beyond the time that it was given.
const SLACK: Duration = Duration::from_secs(5);

/// Why a controller is not paused, or does not go on.
#[derive(Debug)]
pub enum PauseError {
    /// Commands were in flight for too long. It goes on.
    InFlight,
    /// Its frontend is not there, or refuses; in one line.
    Unavailable(String),
}

impl From<ControlError> for PauseError {
    fn from(error: ControlError) -> Self {
        Self::Unavailable(error.line())
    }
}

/// Pauses a controller: returns when nothing of it is in flight.
///
/// # Errors
/// [`PauseError`]; the controller goes on then, if its frontend lives.
pub(crate) async fn pause(
    config: &Config,
    peers: &[Peer],
    controller: &str,
    settle: Duration,
    longest: Option<Duration>,
) -> Result<(), PauseError> {
    let session = counters::session(config, peers, controller).map_err(PauseError::Unavailable)?;
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let pause = PauseEndpoint {
        endpoint: controller.to_owned(),
        settle_ns: nanoseconds(settle),
        longest_ns: longest.map_or(0, nanoseconds),
    };
    session.tell(request::Body::PauseEndpoint(pause), &[]).await?;
    let deadline = Instant::now() + settle + SLACK;
    let mut look = LOOKS.0;
    while Instant::now() < deadline {
        match state(config, peers, controller).await.map_err(PauseError::Unavailable)? {
            PauseState::Paused => return Ok(()),
            PauseState::Pausing => {}
            PauseState::Running | PauseState::Unspecified => return Err(PauseError::InFlight),
        }
        tokio::time::sleep(look).await;
        look = (look * 2).min(LOOKS.1);
    }
    resume(config, peers, controller).await?;
    Err(PauseError::InFlight)
}

/// Lets a controller go on.
///
/// # Errors
/// [`PauseError::Unavailable`].
pub(crate) async fn resume(
    config: &Config,
    peers: &[Peer],
    controller: &str,
) -> Result<(), PauseError> {
    let session = counters::session(config, peers, controller).map_err(PauseError::Unavailable)?;
    let body = request::Body::ResumeEndpoint(ResumeEndpoint { endpoint: controller.to_owned() });
    session.tell(body, &[]).await?;
    Ok(())
}

/// Whether a controller's commands are fetched.
///
/// # Errors
/// Why its frontend does not say so, in one line.
pub(crate) async fn state(
    config: &Config,
    peers: &[Peer],
    controller: &str,
) -> Result<PauseState, String> {
    let session = counters::session(config, peers, controller)?;
    // Without counters.
    counters::read_piece(&session, controller, u32::MAX).await.map(|report| report.pause_state())
}

/// Names of controllers of which frontends say anything, and of those that are paused or about to be.
pub(crate) async fn overview(peers: &[Peer]) -> (BTreeSet<String>, BTreeSet<String>) {
    let processes = status::of_kind(peers, Kind::Frontend).await;
    let items = processes.into_iter().flat_map(|process| process.items);
    let endpoints: Vec<_> = items.filter(|item| item.kind == "endpoint").collect();
    let paused = endpoints.iter().filter(|item| item.paused).map(|item| item.name.clone());
    let paused = paused.collect();
    (endpoints.into_iter().map(|item| item.name).collect(), paused)
}
