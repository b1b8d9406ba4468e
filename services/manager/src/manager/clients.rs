//! Who comes to controllers and leaves them, for those who watch. Frontends are asked only while somebody does.

use super::Manager;
use crate::event::{Event, Kind};
use crate::object::Object;
use crate::status;
use service::config;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often frontends are asked while events are watched.
const INTERVAL: Duration = Duration::from_secs(1);

impl Manager {
    /// Tells when clients come and leave.
    pub(super) async fn follow_clients(&self) {
        let mut before: Option<BTreeMap<String, bool>> = None;
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if !self.events.is_watched() {
                before = None;
                continue;
            }
            let now = self.connected().await;
            for (name, connected) in &now {
                let known = before.as_ref().and_then(|before| before.get(name));
                let kind = match (known, connected) {
                    (Some(false), true) => Kind::Connected,
                    (Some(true), false) => Kind::Disconnected,
                    _ => continue,
                };
                self.events.tell(Event {
                    kind,
                    name: Object::Controller(name.clone()).to_string(),
                    message: format!("client {}", kind.as_str()),
                });
            }
            // A frontend that does not answer says nothing of its clients.
            let mut seen = before.unwrap_or_default();
            seen.extend(now);
            before = Some(seen);
        }
    }

    /// Which controllers have a client, as far as frontends answer.
    pub async fn connected(&self) -> BTreeMap<String, bool> {
        let processes = status::of_kind(self.peers(), config::Kind::Frontend).await;
        let items = processes.into_iter().flat_map(|process| process.items);
        let endpoints = items.filter(|item| item.kind == "endpoint");
        endpoints.map(|item| (item.name, item.state == "connected")).collect()
    }
}
