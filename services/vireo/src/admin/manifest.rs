//! Whole configurations: what was made through the API, as a document, and from it.

use super::arguments::{Access, Format};
use super::json;
use super::run::answer;
use super::session::{Session, namespace_name};
use super::show::{self, short_namespace};
use crate::text::print;
use anyhow::{Context, bail};
use prost::Message;
use prost_types::FieldMask;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use vireo_api::v1::{
    Controller, CreateControllerRequest, CreateNamespaceRequest, CreateSubsystemRequest,
    CreateVolumeRequest, Limits, Namespace, Origin, Subsystem, UpdateControllerRequest,
    UpdateNamespaceRequest, UpdateVolumeRequest, Volume,
};

/// Most bytes of a document.
const MAX_DOCUMENT: u64 = 16 << 20;
/// Fields that the manager fills in.
const OUTPUT_ONLY: [&str; 10] = [
    "origin",
    "state",
    "state_message",
    "create_time",
    "etag",
    "namespaces",
    "capacity_bytes",
    "client",
    "nsid",
    "pause_state",
];

/// Resources of a document, in the order in which they can be made.
#[derive(Debug, Default, PartialEq)]
struct Manifest {
    volumes: Vec<Volume>,
    subsystems: Vec<Subsystem>,
    namespaces: Vec<Namespace>,
    controllers: Vec<Controller>,
}

/// Prints what there is.
pub(super) async fn export(all: bool, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let ours = |origin: i32| all || origin == i32::from(Origin::Api);
    let mut document = Map::new();
    let volumes = session.all_volumes().await?;
    let volumes = volumes.iter().filter(|volume| ours(volume.origin));
    put(&mut document, "volumes", "Volume", volumes)?;
    let subsystems = session.all_subsystems().await?;
    let subsystems = subsystems.iter().filter(|subsystem| ours(subsystem.origin));
    put(&mut document, "subsystems", "Subsystem", subsystems)?;
    let namespaces = session.all_namespaces("subsystems/-").await?;
    let namespaces = namespaces.iter().filter(|namespace| ours(namespace.origin));
    put(&mut document, "namespaces", "Namespace", namespaces)?;
    let controllers = session.all_controllers().await?;
    let controllers = controllers.iter().filter(|controller| ours(controller.origin));
    put(&mut document, "controllers", "Controller", controllers)?;
    let format = if access.output == Format::Table { Format::Yaml } else { access.output };
    show::structured(&Value::Object(document), format)?;
    Ok(ExitCode::SUCCESS)
}

fn put<'a, M: Message + 'a>(
    document: &mut Map<String, Value>,
    key: &str,
    kind: &str,
    messages: impl Iterator<Item = &'a M>,
) -> anyhow::Result<()> {
    let values =
        messages.map(|message| json::of(kind, message).map(given)).collect::<Result<_, _>>()?;
    document.insert(key.to_owned(), Value::Array(values));
    Ok(())
}

/// A resource without what the manager fills in.
fn given(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        OUTPUT_ONLY.iter().for_each(|field| {
            fields.remove(*field);
        });
    }
    value
}

/// Makes what a document names and is not there; lets volumes grow.
pub(super) async fn apply(file: &Path, dry_run: bool, access: &Access) -> anyhow::Result<ExitCode> {
    let manifest = read(file)?;
    let mut session = Session::open(access).await?;
    let mut applying = Applying { session: &mut session, dry_run, log: Vec::new() };
    let result = applying.all(&manifest).await;
    let log = applying.log;
    // What was done is told even if the rest failed.
    match access.output {
        Format::Table if log.is_empty() => print("nothing to change\n")?,
        Format::Table => print(&log.iter().map(|line| format!("{line}\n")).collect::<String>())?,
        format => {
            show::structured(&serde_json::json!({ "dry_run": dry_run, "changes": log }), format)?;
        }
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn read(file: &Path) -> anyhow::Result<Manifest> {
    let name = file.display();
    let mut text = String::new();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| name.to_string())?)
    };
    source.take(MAX_DOCUMENT).read_to_string(&mut text).with_context(|| name.to_string())?;
    parse(&text).with_context(|| name.to_string())
}

fn parse(text: &str) -> anyhow::Result<Manifest> {
    let document: Value = serde_yaml_ng::from_str(text)?;
    let Value::Object(sections) = document else {
        bail!(
            "is no document of `vireo export`: that has the keys volumes, subsystems, namespaces, \
             controllers"
        );
    };
    let mut manifest = Manifest::default();
    for (key, section) in sections {
        match key.as_str() {
            "volumes" => manifest.volumes = list(&key, "Volume", section)?,
            "subsystems" => manifest.subsystems = list(&key, "Subsystem", section)?,
            "namespaces" => manifest.namespaces = list(&key, "Namespace", section)?,
            "controllers" => manifest.controllers = list(&key, "Controller", section)?,
            _ => {
                bail!("{key}: unknown key; there are volumes, subsystems, namespaces, controllers")
            }
        }
    }
    Ok(manifest)
}

fn list<M: Message + Default>(key: &str, kind: &str, section: Value) -> anyhow::Result<Vec<M>> {
    let entries = match section {
        Value::Null => Vec::new(),
        Value::Array(entries) => entries,
        _ => bail!("{key}: a list is needed"),
    };
    let read = |(index, entry)| json::to(kind, entry).with_context(|| format!("{key}[{index}]"));
    entries.into_iter().enumerate().map(read).collect()
}

/// The way through a document.
struct Applying<'a> {
    session: &'a mut Session,
    dry_run: bool,
    log: Vec<String>,
}

impl Applying<'_> {
    async fn all(&mut self, manifest: &Manifest) -> anyhow::Result<()> {
        let volumes = self.session.all_volumes().await?;
        for volume in &manifest.volumes {
            let there = volumes.iter().find(|there| there.name == volume.name);
            self.volume(volume, there).await.with_context(|| volume.name.clone())?;
        }
        let subsystems = self.session.all_subsystems().await?;
        for subsystem in &manifest.subsystems {
            let there = subsystems.iter().find(|there| there.name == subsystem.name);
            self.subsystem(subsystem, there).await.with_context(|| subsystem.name.clone())?;
        }
        let namespaces = self.session.all_namespaces("subsystems/-").await?;
        for namespace in &manifest.namespaces {
            let name = namespace_name(&namespace.name);
            let there = namespaces.iter().find(|there| there.name == name);
            self.namespace(&name, namespace, there, manifest).await.context(name)?;
        }
        let controllers = self.session.all_controllers().await?;
        for controller in &manifest.controllers {
            let there = controllers.iter().find(|there| there.name == controller.name);
            self.controller(controller, there, manifest)
                .await
                .with_context(|| controller.name.clone())?;
        }
        Ok(())
    }

    fn say(&mut self, did: &str, would: &str, name: &str) {
        let what = if self.dry_run { would } else { did };
        self.log.push(format!("{name}: {what}"));
    }

    async fn volume(&mut self, wanted: &Volume, there: Option<&Volume>) -> anyhow::Result<()> {
        let Some(there) = there else {
            let request = CreateVolumeRequest {
                volume_id: id(&wanted.name, "volumes")?,
                volume: Some(wanted.clone()),
                request_id: String::new(),
                validate_only: self.dry_run,
            };
            answer(self.session.volumes.create_volume(request).await)?;
            self.say("created", "would be created", &wanted.name);
            return Ok(());
        };
        let grown = Volume { size_bytes: there.size_bytes, ..wanted.clone() };
        same("Volume", &grown, there)?;
        if wanted.size_bytes == 0 || wanted.size_bytes == there.size_bytes {
            return Ok(());
        }
        let request = UpdateVolumeRequest {
            volume: Some(Volume {
                name: wanted.name.clone(),
                size_bytes: wanted.size_bytes,
                etag: there.etag.clone(),
                ..Volume::default()
            }),
            update_mask: Some(only("size_bytes")),
            request_id: String::new(),
            validate_only: self.dry_run,
        };
        answer(self.session.volumes.update_volume(request).await)?;
        self.say("grown", "would be grown", &wanted.name);
        Ok(())
    }

    async fn subsystem(
        &mut self,
        wanted: &Subsystem,
        there: Option<&Subsystem>,
    ) -> anyhow::Result<()> {
        if let Some(there) = there {
            return same("Subsystem", wanted, there);
        }
        let request = CreateSubsystemRequest {
            subsystem_id: id(&wanted.name, "subsystems")?,
            subsystem: Some(wanted.clone()),
            request_id: String::new(),
            validate_only: self.dry_run,
        };
        answer(self.session.subsystems.create_subsystem(request).await)?;
        self.say("created", "would be created", &wanted.name);
        Ok(())
    }

    async fn namespace(
        &mut self,
        name: &str,
        wanted: &Namespace,
        there: Option<&Namespace>,
        manifest: &Manifest,
    ) -> anyhow::Result<()> {
        if let Some(there) = there {
            return self.limit_namespace(wanted, there).await;
        }
        let Some((parent, nsid)) = name.split_once("/namespaces/") else {
            bail!("a namespace's name is subsystems/SUBSYSTEM/namespaces/NSID");
        };
        // In a dry run what it stands on may be there only in the document, and the manager could not check it.
        let stands = !self.dry_run
            || !(manifest.volumes.iter().any(|volume| volume.name == wanted.volume)
                || manifest.subsystems.iter().any(|subsystem| subsystem.name == parent));
        if stands {
            let request = CreateNamespaceRequest {
                parent: parent.to_owned(),
                namespace_id: nsid.to_owned(),
                namespace: Some(wanted.clone()),
                request_id: String::new(),
                validate_only: self.dry_run,
            };
            answer(self.session.namespaces.create_namespace(request).await)?;
        }
        self.say("created", "would be created", &short_namespace(name));
        Ok(())
    }

    /// Of a namespace that is there, limits can change.
    async fn limit_namespace(
        &mut self,
        wanted: &Namespace,
        there: &Namespace,
    ) -> anyhow::Result<()> {
        same("Namespace", &Namespace { limits: None, ..wanted.clone() }, there)?;
        let Some(limits) = others(wanted.limits, there.limits) else { return Ok(()) };
        let request = UpdateNamespaceRequest {
            namespace: Some(Namespace {
                name: there.name.clone(),
                limits: Some(limits),
                etag: there.etag.clone(),
                ..Namespace::default()
            }),
            update_mask: Some(only("limits")),
            request_id: String::new(),
            validate_only: self.dry_run,
        };
        answer(self.session.namespaces.update_namespace(request).await)?;
        self.say("limited", "would be limited", &short_namespace(&there.name));
        Ok(())
    }

    /// Of a controller that is there, limits can change.
    async fn limit_controller(
        &mut self,
        wanted: &Controller,
        there: &Controller,
    ) -> anyhow::Result<()> {
        same("Controller", &Controller { limits: None, ..wanted.clone() }, there)?;
        let Some(limits) = others(wanted.limits, there.limits) else { return Ok(()) };
        let request = UpdateControllerRequest {
            controller: Some(Controller {
                name: there.name.clone(),
                limits: Some(limits),
                etag: there.etag.clone(),
                ..Controller::default()
            }),
            update_mask: Some(only("limits")),
            request_id: String::new(),
            validate_only: self.dry_run,
        };
        answer(self.session.controllers.update_controller(request).await)?;
        self.say("limited", "would be limited", &there.name);
        Ok(())
    }

    async fn controller(
        &mut self,
        wanted: &Controller,
        there: Option<&Controller>,
        manifest: &Manifest,
    ) -> anyhow::Result<()> {
        if let Some(there) = there {
            return self.limit_controller(wanted, there).await;
        }
        let stands = !self.dry_run
            || !manifest.subsystems.iter().any(|subsystem| subsystem.name == wanted.subsystem);
        if stands {
            let request = CreateControllerRequest {
                controller_id: id(&wanted.name, "controllers")?,
                controller: Some(wanted.clone()),
                request_id: String::new(),
                validate_only: self.dry_run,
            };
            answer(self.session.controllers.create_controller(request).await)?;
        }
        self.say("created", "would be created", &wanted.name);
        Ok(())
    }
}

/// The mask of an update of one field.
pub(super) fn only(field: &str) -> FieldMask {
    FieldMask { paths: vec![field.to_owned()] }
}

/// The limits that a document gives, if they are others than there are.
fn others(wanted: Option<Limits>, there: Option<Limits>) -> Option<Limits> {
    wanted.filter(|wanted| *wanted != there.unwrap_or_default())
}

/// The last part of a name in this collection.
fn id(name: &str, collection: &str) -> anyhow::Result<String> {
    match name.split_once('/') {
        Some((found, id)) if found == collection && !id.is_empty() => Ok(id.to_owned()),
        _ => bail!("a name here is {collection}/ID"),
    }
}

/// That every field which the document gives is what it is: nothing of it can change.
fn same(kind: &str, wanted: &impl Message, there: &impl Message) -> anyhow::Result<()> {
    let (wanted, there) = (given(json::of(kind, wanted)?), json::of(kind, there)?);
    for (field, value) in wanted.as_object().into_iter().flatten() {
        if there.get(field) != Some(value) {
            bail!(
                "{field} cannot change, it is {}: delete it and make it anew",
                there.get(field).unwrap_or(&Value::Null)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "
volumes:
- name: volumes/data
  malloc: {}
  size_bytes: \"1048576\"
subsystems:
- name: subsystems/s1
namespaces:
- name: subsystems/s1/namespaces/1
  volume: volumes/data
controllers:
- name: controllers/vm1
  subsystem: subsystems/s1
";

    #[test]
    fn documents_are_read_as_they_are_written() {
        let manifest = parse(DOCUMENT).unwrap();
        assert_eq!(manifest.volumes[0].size_bytes, 1 << 20);
        assert_eq!(manifest.controllers[0].subsystem, "subsystems/s1");
        let value = given(json::of("Volume", &manifest.volumes[0]).unwrap());
        let text = serde_yaml_ng::to_string(&serde_json::json!({ "volumes": [value] })).unwrap();
        assert_eq!(parse(&text).unwrap().volumes, manifest.volumes);
    }

    #[test]
    fn mistakes_are_named_by_their_place() {
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(error("volumes:\n- nmae: x").starts_with("volumes[0]: "));
        assert!(error("disks: []").starts_with("disks: unknown key"));
        assert!(error("volumes: 3").starts_with("volumes: a list"));
    }

    #[test]
    fn what_cannot_change_is_refused_and_what_is_not_given_is_left_alone() {
        let there =
            Subsystem { name: "subsystems/s".into(), serial: "A".into(), ..Default::default() };
        let wanted = Subsystem { name: "subsystems/s".into(), ..Default::default() };
        same("Subsystem", &wanted, &there).unwrap();
        let wanted = Subsystem { serial: "B".into(), ..wanted };
        let error = same("Subsystem", &wanted, &there).unwrap_err().to_string();
        assert_eq!(error, "serial cannot change, it is \"A\": delete it and make it anew");
    }
}
