//! Pauses of controllers and namespaces, as callers ask for them and see them.

use super::{Api, error, time};
use crate::manager::edit::EditError;
use crate::object::Object;
use crate::pause::{self, Pausable, PauseError};
use prost_types::Duration as PbDuration;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use telemetry::spans;
use tonic::{Code, Status};
use vireo_api::v1::PauseState;
use vireo_proto::handoff;

/// How long commands in flight may be waited for.
const SETTLE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
const DEFAULT_SETTLE: Duration = Duration::from_secs(5);
/// How long a pause that ends by itself may be.
const LONGEST: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60);
/// Reason in ErrorInfo: commands were in flight for too long.
const IN_FLIGHT: &str = "IN_FLIGHT";

/// What a caller wants of a pause.
pub(super) struct Wanted<'a> {
    /// How long commands in flight may be waited for.
    pub timeout: Option<&'a PbDuration>,
    /// After how long it goes on by itself.
    pub max_pause: Option<&'a PbDuration>,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

impl Api {
    /// Pauses a controller or a namespace that is there.
    pub(super) async fn pause(&self, object: &Object, wanted: Wanted<'_>) -> Result<(), Status> {
        let settle = within("timeout", wanted.timeout, &SETTLE)?;
        let settle = settle.unwrap_or(DEFAULT_SETTLE);
        let longest = within("max_pause", wanted.max_pause, &LONGEST)?;
        let Some(pausable) = self.to_change(object, wanted.validate_only) else { return Ok(()) };
        let manager = Arc::clone(&self.manager);
        let pause = async move {
            let config = manager.config();
            pause::pause(&config, manager.peers(), &pausable, settle, longest).await
        };
        // What has begun is finished, though its caller leaves.
        let ended = tokio::spawn(spans::within(spans::current(), pause)).await;
        let ended = ended.map_err(|error| error::edit(EditError::Internal(error.to_string())))?;
        ended.map_err(|failed| refused(&failed, object, settle))
    }

    /// Lets a controller or a namespace that is there go on.
    pub(super) async fn resume(&self, object: &Object, validate_only: bool) -> Result<(), Status> {
        let Some(pausable) = self.to_change(object, validate_only) else { return Ok(()) };
        let resumed = pause::resume(&self.manager.config(), self.manager.peers(), &pausable).await;
        resumed.map_err(|failed| refused(&failed, object, Duration::ZERO))
    }

    /// An object that is there, if something is to happen to it.
    fn to_change(&self, object: &Object, validate_only: bool) -> Option<Pausable> {
        let wanted = !validate_only && object.is_in(&self.manager.config());
        Pausable::of(object).filter(|_| wanted)
    }

    /// Asks whether commands of a controller or a namespace are sent on.
    pub(super) async fn pause_state(&self, object: &Object) -> PauseState {
        let Some(pausable) = Pausable::of(object) else { return PauseState::Unspecified };
        match pause::state(&self.manager.config(), self.manager.peers(), &pausable).await {
            Ok(handoff::PauseState::Running) => PauseState::Running,
            Ok(handoff::PauseState::Pausing) => PauseState::Pausing,
            Ok(handoff::PauseState::Paused) => PauseState::Paused,
            Ok(handoff::PauseState::Unspecified) | Err(_) => PauseState::Unspecified,
        }
    }
}

/// Why an object is not paused, or does not go on.
fn refused(failed: &PauseError, object: &Object, settle: Duration) -> Status {
    match failed {
        PauseError::InFlight => {
            let text = format!(
                "commands are still in flight after {settle:?}: {object} goes on; give a longer \
                 timeout"
            );
            error::refuse(Code::DeadlineExceeded, IN_FLIGHT, text)
        }
        PauseError::Unavailable(line) => {
            error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, line.as_str())
        }
    }
}

/// A duration in a range; `None` if it is not given.
fn within(
    field: &str,
    given: Option<&PbDuration>,
    range: &RangeInclusive<Duration>,
) -> Result<Option<Duration>, Status> {
    let Some(given) = given else { return Ok(None) };
    let found = time::parse(given).filter(|duration| range.contains(duration));
    found.map(Some).ok_or_else(|| {
        let text = format!("is out of range; write {:?} to {:?}", range.start(), range.end());
        error::invalid(field, text)
    })
}
