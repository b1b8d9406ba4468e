//! What a manager begins with: what was served before, or what the configuration file says now.

use crate::change::{Sizes, compare, same_uuids};
use crate::desired::Desired;
use crate::store::State;
use service::config::{Config, Kind};
use service::control::Session;
use std::time::Duration;
use vireo_proto::handoff::{GetStatus, reply, request};

/// How long a process may take at the manager's start to tell whether it serves something.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What to begin with: the state to store, and why it is not the file's configuration if it is not.
pub(super) async fn decide(stored: State, file: Config) -> (State, String) {
    let Some(old) = &stored.config else {
        return (State { config: Some(file), ..stored }, String::new());
    };
    let new = match stored.made.layer(&file, old) {
        Ok(new) => new,
        Err(refused) => return keep(&stored, &file, &refused),
    };
    let accepted = |leaving| State { config: Some(new.clone()), leaving, ..stored.clone() };
    if *old == new && stored.leaving.is_empty() {
        return (accepted(Vec::new()), String::new());
    }
    let clashes = same_uuids(&stored.identities, &new);
    if !clashes.is_empty() {
        return keep(&stored, &file, &clashes);
    }
    if !is_served(old).await {
        return (accepted(Vec::new()), String::new());
    }
    let before = Desired { config: old.clone(), identities: stored.identities.clone() };
    match compare(&before, &new, &Sizes::new()) {
        Ok(_) => {
            let mut leaving = stored.leaving.clone();
            leaving.extend(super::leaves(old, &new).then(|| old.clone()));
            (accepted(leaving), String::new())
        }
        Err(refused) => keep(&stored, &file, &refused),
    }
}

/// What was served before, but for what only this process is concerned with.
fn keep(stored: &State, file: &Config, refused: &[String]) -> (State, String) {
    for reason in refused {
        tracing::error!(reason, "the configuration file is not what is served");
    }
    let config = stored.config.clone().map(|old| Config { api: file.api.clone(), ..old });
    let line = format!("the configuration file is not served: {}", refused.join("; "));
    (State { config, ..stored.clone() }, line)
}

/// True if a process tells of anything that it serves.
async fn is_served(config: &Config) -> bool {
    let mut asked = tokio::task::JoinSet::new();
    for (kind, name) in config.services() {
        if !matches!(kind, Kind::Backend | Kind::Frontend) {
            continue;
        }
        let socket = config.socket(kind, name);
        asked.spawn(async move {
            let session = Session::connect(&socket, "manager").ok()?;
            let body = request::Body::GetStatus(GetStatus {});
            match session.call_within(PROBE_TIMEOUT, body, &[]).await {
                Ok(answer) => match answer.body {
                    reply::Body::ProcessStatus(status) => Some(!status.items.is_empty()),
                    _ => None,
                },
                // One that is there and silent may serve guests.
                Err(service::control::ControlError::TimedOut { .. }) => Some(true),
                Err(_) => None,
            }
        });
    }
    let mut served = false;
    while let Some(answer) = asked.join_next().await {
        served |= matches!(answer, Ok(Some(true)));
    }
    served
}
