//! Counters as OPI tells them.

use crate::counters::{Counters, Scope};
use crate::grpc::Api;
use crate::grpc::error::{reason, refuse};
use crate::object::Object;
use service::config::Config;
use tonic::{Code, Status};
use vireo_api::opi::VolumeStats;

/// The counters of an object that is there.
pub(super) async fn of(api: &Api, object: Object) -> Result<VolumeStats, Status> {
    let config = api.manager.config();
    let reading = api.bases.read(&config, api.manager.peers()).await;
    // A sum that lacks a part would look like fewer commands.
    let unread = reading.failures.iter().find(|line| is_part(line, &object, &config));
    if let Some(line) = unread {
        let text = format!("not all counters could be read: {line}");
        return Err(refuse(Code::Unavailable, reason::UNAVAILABLE, text));
    }
    let scope = Scope::Object(object);
    let parts = reading.of(&scope, &config);
    Ok(told(parts.fold(Counters::default(), |sum, part| sum.plus(part.counters))))
}

/// True if `line` tells of a controller (`controllers/vm0: ...`) that counts for `object`, or of none in particular.
fn is_part(line: &str, object: &Object, config: &Config) -> bool {
    let name = line.strip_prefix("controllers/").and_then(|rest| rest.split_once(": "));
    let Some((name, _)) = name else { return true };
    let endpoint = config.endpoints.iter().find(|endpoint| endpoint.name == name);
    let Some(endpoint) = endpoint else { return false };
    match object {
        Object::Controller(controller) => controller == name,
        Object::Subsystem(subsystem) | Object::Namespace { subsystem, .. } => {
            endpoint.subsystem == *subsystem
        }
        Object::Volume(volume) => {
            let subsystem = config.subsystem(&endpoint.subsystem);
            subsystem.is_some_and(|s| s.namespaces.iter().any(|n| n.bdev == *volume))
        }
    }
}

fn told(counters: Counters) -> VolumeStats {
    let fit = |count: u64| i32::try_from(count).unwrap_or(i32::MAX);
    VolumeStats {
        read_bytes_count: fit(counters.read_bytes),
        read_ops_count: fit(counters.reads),
        write_bytes_count: fit(counters.written_bytes),
        write_ops_count: fit(counters.writes),
        ..VolumeStats::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn counts_that_do_not_fit_stay_at_the_end() {
        let counters = Counters { read_bytes: u64::MAX, reads: 7, ..Counters::default() };
        let stats = told(counters);
        assert_eq!((stats.read_bytes_count, stats.read_ops_count), (i32::MAX, 7));
        assert_eq!((stats.write_bytes_count, stats.unmap_ops_count), (0, 0));
    }

    #[test]
    fn only_what_counts_for_an_object_keeps_its_sum_from_being_told() {
        let config = sample::config(&[]);
        let line = "controllers/vm0: frontend f0 is not there";
        for (name, counts) in [
            ("controllers/vm0", true),
            ("controllers/vm1", false),
            ("subsystems/s0", true),
            ("subsystems/s1", false),
            ("subsystems/s0/namespaces/7", true),
            ("volumes/null0", true),
            ("volumes/file0", false),
        ] {
            assert_eq!(is_part(line, &name.parse().unwrap(), &config), counts, "{name}");
        }
        assert!(is_part("something else", &Object::Volume("file0".into()), &config));
    }
}
