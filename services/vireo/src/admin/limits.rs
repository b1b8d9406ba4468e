//! Limits and pauses as a person types them, and what comes of them.

use super::arguments::Change;
use super::run::answer;
use super::session::{Session, full_name, namespace_name};
use crate::perf::units::{parse_duration, parse_size};
use anyhow::Context;
use clap::Args;
use prost_types::FieldMask;
use std::time::Duration;
use vireo_api::v1::{
    Controller, Limits, Namespace, PauseControllerRequest, PauseNamespaceRequest,
    ResumeControllerRequest, ResumeNamespaceRequest, UpdateControllerRequest,
    UpdateNamespaceRequest,
};

/// Limits of a namespace or a controller. A command over one waits.
#[derive(Debug, Default, Args)]
pub struct LimitArguments {
    /// Commands a second; `none` takes the limit away.
    #[arg(long, value_name = "N", value_parser = parse_commands)]
    pub iops: Option<Setting>,
    /// Commands a second that read.
    #[arg(long, value_name = "N", value_parser = parse_commands)]
    pub read_iops: Option<Setting>,
    /// Commands a second that write.
    #[arg(long, value_name = "N", value_parser = parse_commands)]
    pub write_iops: Option<Setting>,
    /// Bytes a second: a number, or `100MiB`; `none` takes the limit away.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bandwidth: Option<Setting>,
    /// Bytes a second that are read.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub read_bandwidth: Option<Setting>,
    /// Bytes a second that are written.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub write_bandwidth: Option<Setting>,
}

/// Of `limit`: what is given changes.
#[derive(Debug, Args)]
pub struct LimitVerb {
    /// Its name.
    pub name: String,
    #[command(flatten)]
    pub limits: LimitArguments,
    /// Take all limits away that are not given.
    #[arg(long)]
    pub clear: bool,
    /// Only if this is still its etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub etag: String,
    #[command(flatten)]
    pub change: Change,
}

/// Of `controller pause` and `namespace pause`.
#[derive(Debug, Args)]
pub struct PauseVerb {
    /// Its name.
    pub name: String,
    /// How long commands in flight are waited for; after that it goes on.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    pub timeout: Duration,
    /// Go on after so long, whatever happens. (Linux gives a command up after 30 s.)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub max: Option<Duration>,
    /// Check everything, change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Of `namespace pause`.
#[derive(Debug, Args)]
pub struct NamespacePauseVerb {
    #[command(flatten)]
    pub pause: PauseVerb,
    /// Only if this is still its etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub etag: String,
}

/// A limit, or that there is to be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// No limit.
    Nothing,
    /// So many a second.
    Limit(i64),
}

impl LimitArguments {
    /// The limits that are given.
    pub fn limits(&self) -> Limits {
        let value = |setting: Option<Setting>| match setting {
            Some(Setting::Limit(limit)) => Some(limit),
            Some(Setting::Nothing) | None => None,
        };
        Limits {
            iops: value(self.iops),
            read_iops: value(self.read_iops),
            write_iops: value(self.write_iops),
            bandwidth: value(self.bandwidth),
            read_bandwidth: value(self.read_bandwidth),
            write_bandwidth: value(self.write_bandwidth),
        }
    }

    /// The limits of something that is made; `None` if none is given.
    pub fn of_new(&self) -> Option<Limits> {
        let limits = self.limits();
        (limits != Limits::default()).then_some(limits)
    }

    /// What changes: all limits if `clear`, else those that are given; `None` if nothing does.
    pub fn mask(&self, clear: bool) -> Option<FieldMask> {
        let given = [
            ("iops", self.iops),
            ("read_iops", self.read_iops),
            ("write_iops", self.write_iops),
            ("bandwidth", self.bandwidth),
            ("read_bandwidth", self.read_bandwidth),
            ("write_bandwidth", self.write_bandwidth),
        ];
        let paths: Vec<String> = match clear {
            true => vec!["limits".to_owned()],
            false => {
                let given = given.into_iter().filter(|(_, setting)| setting.is_some());
                given.map(|(field, _)| format!("limits.{field}")).collect()
            }
        };
        (!paths.is_empty()).then_some(FieldMask { paths })
    }
}

impl LimitVerb {
    fn mask(&self) -> anyhow::Result<FieldMask> {
        self.limits.mask(self.clear).context("give a limit (--iops, --bandwidth, ...) or --clear")
    }
}

/// Changes the limits of a namespace.
pub(super) async fn namespace(session: &mut Session, verb: LimitVerb) -> anyhow::Result<Namespace> {
    let request = UpdateNamespaceRequest {
        update_mask: Some(verb.mask()?),
        namespace: Some(Namespace {
            name: namespace_name(&verb.name),
            limits: Some(verb.limits.limits()),
            etag: verb.etag,
            ..Namespace::default()
        }),
        request_id: verb.change.request_id,
        validate_only: verb.change.dry_run,
    };
    answer(session.namespaces.update_namespace(request).await)
}

/// Changes the limits of a controller.
pub(super) async fn controller(
    session: &mut Session,
    verb: LimitVerb,
) -> anyhow::Result<Controller> {
    let request = UpdateControllerRequest {
        update_mask: Some(verb.mask()?),
        controller: Some(Controller {
            name: full_name("controllers", &verb.name),
            limits: Some(verb.limits.limits()),
            etag: verb.etag,
            ..Controller::default()
        }),
        request_id: verb.change.request_id,
        validate_only: verb.change.dry_run,
    };
    answer(session.controllers.update_controller(request).await)
}

/// Pauses a controller.
pub(super) async fn pause(session: &mut Session, verb: PauseVerb) -> anyhow::Result<Controller> {
    let request = PauseControllerRequest {
        name: full_name("controllers", &verb.name),
        timeout: Some(verb.timeout.try_into()?),
        max_pause: verb.max.map(TryInto::try_into).transpose()?,
        validate_only: verb.dry_run,
    };
    answer(session.controllers.pause_controller(request).await)
}

/// Lets a controller go on.
pub(super) async fn resume(
    session: &mut Session,
    name: &str,
    dry_run: bool,
) -> anyhow::Result<Controller> {
    let name = full_name("controllers", name);
    let request = ResumeControllerRequest { name, validate_only: dry_run };
    answer(session.controllers.resume_controller(request).await)
}

/// Pauses a namespace.
pub(super) async fn pause_namespace(
    session: &mut Session,
    verb: NamespacePauseVerb,
) -> anyhow::Result<Namespace> {
    let NamespacePauseVerb { pause, etag } = verb;
    let request = PauseNamespaceRequest {
        name: namespace_name(&pause.name),
        timeout: Some(pause.timeout.try_into()?),
        max_pause: pause.max.map(TryInto::try_into).transpose()?,
        etag,
        validate_only: pause.dry_run,
    };
    answer(session.namespaces.pause_namespace(request).await)
}

/// Lets a namespace go on.
pub(super) async fn resume_namespace(
    session: &mut Session,
    name: &str,
    dry_run: bool,
) -> anyhow::Result<Namespace> {
    let name = namespace_name(name);
    let request = ResumeNamespaceRequest { name, validate_only: dry_run };
    answer(session.namespaces.resume_namespace(request).await)
}

fn parse_commands(text: &str) -> Result<Setting, String> {
    setting(text, |text| text.parse().map_err(|_| "write a whole number, or none".to_owned()))
}

fn parse_bytes(text: &str) -> Result<Setting, String> {
    setting(text, parse_size)
}

fn setting(text: &str, parse: impl FnOnce(&str) -> Result<u64, String>) -> Result<Setting, String> {
    if text == "none" {
        return Ok(Setting::Nothing);
    }
    let limit = i64::try_from(parse(text)?).map_err(|_| "is too large".to_owned())?;
    Ok(Setting::Limit(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_changes_and_nothing_else() {
        let given = LimitArguments {
            iops: Some(Setting::Limit(500)),
            bandwidth: Some(Setting::Nothing),
            ..LimitArguments::default()
        };
        assert_eq!(given.limits(), Limits { iops: Some(500), ..Limits::default() });
        assert_eq!(given.mask(false).unwrap().paths, ["limits.iops", "limits.bandwidth"]);
        assert_eq!(given.mask(true).unwrap().paths, ["limits"]);
        assert_eq!(LimitArguments::default().mask(false), None);
        assert_eq!(LimitArguments::default().of_new(), None);
    }

    #[test]
    fn limits_are_numbers_sizes_or_none() {
        assert_eq!(parse_commands("5000"), Ok(Setting::Limit(5000)));
        assert_eq!(parse_bytes("10MiB"), Ok(Setting::Limit(10 << 20)));
        assert_eq!(parse_commands("none"), Ok(Setting::Nothing));
        for wrong in ["", "-1", "5k", "99999999999999999999"] {
            assert!(parse_commands(wrong).is_err(), "{wrong}");
        }
        assert!(parse_bytes("lots").is_err());
    }
}
