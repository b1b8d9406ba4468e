//! Pauses of controllers, as callers ask for them and see them.

use super::{Api, error, time};
use crate::manager::edit::EditError;
use crate::object::Object;
use crate::pause::{self, PauseError};
use prost_types::Duration as PbDuration;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use telemetry::spans;
use tonic::{Code, Status};
use vireo_api::v1::{Controller, PauseControllerRequest, PauseState, ResumeControllerRequest};
use vireo_proto::handoff;

/// How long commands in flight may be waited for.
const SETTLE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
const DEFAULT_SETTLE: Duration = Duration::from_secs(5);
/// How long a pause that ends by itself may be.
const LONGEST: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60);
/// Reason in ErrorInfo: commands were in flight for too long.
const IN_FLIGHT: &str = "IN_FLIGHT";

impl Api {
    /// Pauses a controller that is there.
    pub(super) async fn pause(
        &self,
        object: &Object,
        request: &PauseControllerRequest,
    ) -> Result<(), Status> {
        let settle = within("timeout", request.timeout.as_ref(), &SETTLE)?;
        let settle = settle.unwrap_or(DEFAULT_SETTLE);
        let longest = within("max_pause", request.max_pause.as_ref(), &LONGEST)?;
        let Some(name) = self.to_change(object, request.validate_only) else { return Ok(()) };
        let manager = Arc::clone(&self.manager);
        let pause = async move {
            let config = manager.config();
            pause::pause(&config, manager.peers(), &name, settle, longest).await
        };
        // What has begun is finished, though its caller leaves.
        let ended = tokio::spawn(spans::within(spans::current(), pause)).await;
        let ended = ended.map_err(|error| error::edit(EditError::Internal(error.to_string())))?;
        ended.map_err(|failed| refused(&failed, settle))
    }

    /// Lets a controller that is there go on.
    pub(super) async fn resume(
        &self,
        object: &Object,
        request: &ResumeControllerRequest,
    ) -> Result<(), Status> {
        let Some(name) = self.to_change(object, request.validate_only) else { return Ok(()) };
        let resumed = pause::resume(&self.manager.config(), self.manager.peers(), &name).await;
        resumed.map_err(|failed| refused(&failed, Duration::ZERO))
    }

    /// The name of a controller that is there, if something is to happen to it.
    fn to_change(&self, object: &Object, validate_only: bool) -> Option<String> {
        let Object::Controller(name) = object else { return None };
        let wanted = !validate_only && object.is_in(&self.manager.config());
        wanted.then(|| name.clone())
    }

    /// Asks whether a controller's commands are fetched.
    pub(super) async fn fill_pause_state(&self, controller: &mut Controller, object: &Object) {
        let Object::Controller(name) = object else { return };
        let config = self.manager.config();
        let state = match pause::state(&config, self.manager.peers(), name).await {
            Ok(handoff::PauseState::Running) => PauseState::Running,
            Ok(handoff::PauseState::Pausing) => PauseState::Pausing,
            Ok(handoff::PauseState::Paused) => PauseState::Paused,
            Ok(handoff::PauseState::Unspecified) | Err(_) => PauseState::Unspecified,
        };
        controller.pause_state = state.into();
    }
}

/// Why a controller is not paused, or does not go on.
fn refused(failed: &PauseError, settle: Duration) -> Status {
    match failed {
        PauseError::InFlight => {
            let text = format!(
                "commands are still in flight after {settle:?}: the controller goes on; give a \
                 longer timeout"
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
