//! What each command does.

use super::arguments::{
    Access, AdminCommand, Change, Channel, ControllerVerb, Doorbells, Driver, Format,
    NamespaceVerb, NewController, NewVolume, SubsystemVerb, TargetVerb, VolumeVerb, WorkerVerb,
};
use super::session::{Session, full_name, namespace_name, refusal};
use super::show::{self, Column};
use super::{fault, json, limits, manifest, stats, trace};
use crate::text::print;
use anyhow::Context;
use prost::Message;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use tonic::{Response, Status};
use vireo_api::v1::{
    Controller, CreateControllerRequest, CreateNamespaceRequest, CreateSubsystemRequest,
    CreateVolumeRequest, DeleteControllerRequest, DeleteNamespaceRequest, DeleteSubsystemRequest,
    DeleteVolumeRequest, DoorbellMode, FileVolume, GetControllerRequest, GetNamespaceRequest,
    GetSubsystemRequest, GetTargetRequest, GetVolumeRequest, GetWorkerRequest, MallocVolume,
    Namespace, NullVolume, NvmeVolume, ReloadTargetRequest, Subsystem, UpdateVolumeRequest, Volume,
    VolumeChannel, volume,
};

/// Most resources in one answer.
const PAGE: i32 = 1000;

/// Runs a command.
///
/// # Errors
/// What the manager refused, or why it was not reached, in lines for a person.
pub async fn run(command: AdminCommand) -> anyhow::Result<ExitCode> {
    match command {
        AdminCommand::Target(verb) => target(&verb.verb, &verb.access).await,
        AdminCommand::Volume(verb) => volumes(verb.verb, &verb.access).await,
        AdminCommand::Subsystem(verb) => subsystems(verb.verb, &verb.access).await,
        AdminCommand::Namespace(verb) => namespaces(verb.verb, &verb.access).await,
        AdminCommand::Controller(verb) => controllers(verb.verb, &verb.access).await,
        AdminCommand::Worker(verb) => workers(verb.verb, &verb.access).await,
        AdminCommand::Stats(verb) => stats::run(verb.verb, &verb.access).await,
        AdminCommand::Trace(verb) => trace::run(verb.verb, &verb.access).await,
        AdminCommand::Fault(verb) => fault::run(verb.verb, &verb.access).await,
        AdminCommand::Events { names, after, count, access } => {
            stats::events(names, after, count, &access).await
        }
        AdminCommand::Apply { file, dry_run, access } => {
            manifest::apply(&file, dry_run, &access).await
        }
        AdminCommand::Export { all, access } => manifest::export(all, &access).await,
    }
}

/// The answer of a call.
pub(super) fn answer<T>(result: Result<Response<T>, Status>) -> anyhow::Result<T> {
    result.map(Response::into_inner).map_err(|status| refusal(&status))
}

/// A request to delete; all kinds have these fields in common.
macro_rules! deletion {
    ($request:ident, $name:expr, $deletion:expr $(, $more:ident)*) => {
        $request {
            name: $name.clone(),
            etag: $deletion.etag,
            allow_missing: $deletion.allow_missing,
            request_id: $deletion.change.request_id.clone(),
            validate_only: $deletion.change.dry_run,
            $($more,)*
        }
    };
}

/// Calls a method that lists resources until there are no more.
macro_rules! all {
    ($client:expr, $method:ident, $request:ident { $($field:ident: $value:expr),* }, $list:ident) => {{
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let request =
                vireo_api::v1::$request { page_size: PAGE, page_token, $($field: $value,)* };
            let page = answer($client.$method(request).await)?;
            found.extend(page.$list);
            if page.next_page_token.is_empty() {
                break found;
            }
            page_token = page.next_page_token;
        }
    }};
}

impl Session {
    /// All volumes.
    pub(super) async fn all_volumes(&mut self) -> anyhow::Result<Vec<Volume>> {
        Ok(all!(self.volumes, list_volumes, ListVolumesRequest {}, volumes))
    }

    /// All subsystems.
    pub(super) async fn all_subsystems(&mut self) -> anyhow::Result<Vec<Subsystem>> {
        Ok(all!(self.subsystems, list_subsystems, ListSubsystemsRequest {}, subsystems))
    }

    /// All namespaces of a subsystem, or of all (`subsystems/-`).
    pub(crate) async fn all_namespaces(&mut self, parent: &str) -> anyhow::Result<Vec<Namespace>> {
        Ok(all!(
            self.namespaces,
            list_namespaces,
            ListNamespacesRequest { parent: parent.to_owned() },
            namespaces
        ))
    }

    /// All controllers.
    pub(crate) async fn all_controllers(&mut self) -> anyhow::Result<Vec<Controller>> {
        Ok(all!(self.controllers, list_controllers, ListControllersRequest {}, controllers))
    }
}

pub(super) fn list<M: Message>(
    kind: &str,
    messages: &[M],
    columns: &[Column],
    format: Format,
) -> anyhow::Result<ExitCode> {
    let values = messages.iter().map(|message| json::of(kind, message));
    show::resources(&values.collect::<Result<Vec<_>, _>>()?, columns, format)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn one(
    kind: &str,
    message: &impl Message,
    columns: &[Column],
    format: Format,
) -> anyhow::Result<ExitCode> {
    show::resource(&json::of(kind, message)?, columns, format)?;
    Ok(ExitCode::SUCCESS)
}

/// Says that something went; programs get an empty object.
fn gone(name: &str, change: &Change, format: Format) -> anyhow::Result<ExitCode> {
    match (format, change.dry_run) {
        (Format::Table, true) => print(&format!("{name} could be deleted\n"))?,
        (Format::Table, false) => print(&format!("{name} deleted\n"))?,
        _ => show::structured(&Value::Object(serde_json::Map::new()), format)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn target(verb: &TargetVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let name = "target".to_owned();
    match verb {
        TargetVerb::Get => {
            let target = answer(session.target.get_target(GetTargetRequest { name }).await)?;
            let ready = target.ready;
            let value = json::of("Target", &target)?;
            if access.output == Format::Table {
                let processes = value["processes"].as_array().cloned().unwrap_or_default();
                show::resources(&processes, show::PROCESS, Format::Table)?;
                let missing = target.failures.iter().map(|failure| format!("missing: {failure}\n"));
                print(&missing.collect::<String>())?;
            } else {
                show::structured(&value, access.output)?;
            }
            Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        TargetVerb::Reload { dry_run } => {
            let request = ReloadTargetRequest { name, validate_only: *dry_run };
            let result = answer(session.target.reload_target(request).await)?;
            if access.output != Format::Table {
                show::structured(&json::of("ReloadTargetResponse", &result)?, access.output)?;
            } else if result.changes.is_empty() {
                print("nothing to change\n")?;
            } else {
                print(&result.changes.iter().map(|line| format!("{line}\n")).collect::<String>())?;
            }
            for failure in &result.failures {
                eprintln!("failed so far: {failure}");
            }
            let failed = !result.failures.is_empty();
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

async fn volumes(verb: VolumeVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let (columns, format) = (show::VOLUME, access.output);
    let volume = match verb {
        VolumeVerb::List => {
            return list("Volume", &session.all_volumes().await?, columns, format);
        }
        VolumeVerb::Get { name } => {
            let request = GetVolumeRequest { name: full_name("volumes", &name) };
            answer(session.volumes.get_volume(request).await)?
        }
        VolumeVerb::Create(new) => {
            answer(session.volumes.create_volume(create_volume(*new)?).await)?
        }
        VolumeVerb::Grow { name, size, etag, change } => {
            let name = full_name("volumes", &name);
            let request = UpdateVolumeRequest {
                volume: Some(Volume { name, size_bytes: size, etag, ..Volume::default() }),
                update_mask: Some(manifest::only("size_bytes")),
                request_id: change.request_id,
                validate_only: change.dry_run,
            };
            answer(session.volumes.update_volume(request).await)?
        }
        VolumeVerb::Delete(deletion) => {
            let name = full_name("volumes", &deletion.name);
            let request = deletion!(DeleteVolumeRequest, name, deletion);
            answer(session.volumes.delete_volume(request).await)?;
            return gone(&name, &deletion.change, format);
        }
    };
    one("Volume", &volume, columns, format)
}

/// A path as the API takes it: absolute, and UTF-8.
fn path(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).context("--path")?;
    Ok(path.to_str().context("--path is not UTF-8")?.to_owned())
}

fn create_volume(new: NewVolume) -> anyhow::Result<CreateVolumeRequest> {
    let driver = match new.driver {
        Driver::Null => volume::Driver::Null(NullVolume {
            latency: new.latency.map(prost_types::Duration::try_from).transpose()?,
        }),
        Driver::Malloc => volume::Driver::Malloc(MallocVolume {}),
        Driver::File => volume::Driver::File(FileVolume {
            path: path(&new.path.context("--path is needed")?)?,
            create: new.create,
            buffered: new.buffered,
            read_only: new.read_only,
        }),
        Driver::Nvme => volume::Driver::Nvme(NvmeVolume {
            target: new.drive.context("--drive is needed")?,
            nsid: new.nsid,
            read_only: new.read_only,
            polled: new.polled,
        }),
    };
    let channel = match new.channel {
        None => VolumeChannel::Unspecified,
        Some(Channel::Lease) => VolumeChannel::Lease,
        Some(Channel::Ring) => VolumeChannel::Ring,
    };
    let volume = Volume {
        driver: Some(driver),
        size_bytes: new.size,
        block_size: new.block_size,
        channel: channel.into(),
        backend: new.backend,
        ..Volume::default()
    };
    Ok(CreateVolumeRequest {
        volume_id: new.name,
        volume: Some(volume),
        request_id: new.change.request_id,
        validate_only: new.change.dry_run,
    })
}

async fn subsystems(verb: SubsystemVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let (columns, format) = (show::SUBSYSTEM, access.output);
    let subsystem = match verb {
        SubsystemVerb::List => {
            return list("Subsystem", &session.all_subsystems().await?, columns, format);
        }
        SubsystemVerb::Get { name } => {
            let request = GetSubsystemRequest { name: full_name("subsystems", &name) };
            answer(session.subsystems.get_subsystem(request).await)?
        }
        SubsystemVerb::Create { name, nqn, serial, model, frontend, change } => {
            let subsystem = Subsystem { nqn, serial, model, frontend, ..Subsystem::default() };
            let request = CreateSubsystemRequest {
                subsystem_id: name,
                subsystem: Some(subsystem),
                request_id: change.request_id,
                validate_only: change.dry_run,
            };
            answer(session.subsystems.create_subsystem(request).await)?
        }
        SubsystemVerb::Delete { deletion, force } => {
            let name = full_name("subsystems", &deletion.name);
            let request = deletion!(DeleteSubsystemRequest, name, deletion, force);
            answer(session.subsystems.delete_subsystem(request).await)?;
            return gone(&name, &deletion.change, format);
        }
    };
    one("Subsystem", &subsystem, columns, format)
}

async fn namespaces(verb: NamespaceVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let (columns, format) = (show::NAMESPACE, access.output);
    let namespace = match verb {
        NamespaceVerb::List { subsystem } => {
            let found = session.all_namespaces(&full_name("subsystems", &subsystem)).await?;
            return list("Namespace", &found, columns, format);
        }
        NamespaceVerb::Get { name } => {
            let request = GetNamespaceRequest { name: namespace_name(&name) };
            answer(session.namespaces.get_namespace(request).await)?
        }
        NamespaceVerb::Create { subsystem, volume, nsid, limits, change } => {
            let limits = limits.of_new();
            let volume = full_name("volumes", &volume);
            let request = CreateNamespaceRequest {
                parent: full_name("subsystems", &subsystem),
                namespace_id: nsid,
                namespace: Some(Namespace { volume, limits, ..Namespace::default() }),
                request_id: change.request_id,
                validate_only: change.dry_run,
            };
            answer(session.namespaces.create_namespace(request).await)?
        }
        NamespaceVerb::Limit(verb) => limits::namespace(&mut session, verb).await?,
        NamespaceVerb::Pause(verb) => limits::pause_namespace(&mut session, verb).await?,
        NamespaceVerb::Resume { name, dry_run } => {
            limits::resume_namespace(&mut session, &name, dry_run).await?
        }
        NamespaceVerb::Delete(deletion) => {
            let name = namespace_name(&deletion.name);
            let request = deletion!(DeleteNamespaceRequest, name, deletion);
            answer(session.namespaces.delete_namespace(request).await)?;
            return gone(&name, &deletion.change, format);
        }
    };
    one("Namespace", &namespace, columns, format)
}

async fn controllers(verb: ControllerVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    let (columns, format) = (show::CONTROLLER, access.output);
    let controller = match verb {
        ControllerVerb::List => {
            return list("Controller", &session.all_controllers().await?, columns, format);
        }
        ControllerVerb::Get { name } => {
            let request = GetControllerRequest { name: full_name("controllers", &name) };
            answer(session.controllers.get_controller(request).await)?
        }
        ControllerVerb::Create(new) => {
            answer(session.controllers.create_controller(create_controller(*new)?).await)?
        }
        ControllerVerb::Limit(verb) => limits::controller(&mut session, verb).await?,
        ControllerVerb::Pause(verb) => limits::pause(&mut session, verb).await?,
        ControllerVerb::Resume { name, dry_run } => {
            limits::resume(&mut session, &name, dry_run).await?
        }
        ControllerVerb::Delete { deletion, force } => {
            let name = full_name("controllers", &deletion.name);
            let request = deletion!(DeleteControllerRequest, name, deletion, force);
            answer(session.controllers.delete_controller(request).await)?;
            return gone(&name, &deletion.change, format);
        }
    };
    one("Controller", &controller, columns, format)
}

fn create_controller(new: NewController) -> anyhow::Result<CreateControllerRequest> {
    let doorbells = match new.doorbells {
        None => DoorbellMode::Unspecified,
        Some(Doorbells::Mapped) => DoorbellMode::Mapped,
        Some(Doorbells::Shadow) => DoorbellMode::Shadow,
    };
    let controller = Controller {
        subsystem: full_name("subsystems", &new.subsystem),
        path: new.path.as_deref().map(path).transpose()?.unwrap_or_default(),
        doorbells: doorbells.into(),
        tenant: new.tenant,
        workers: new.workers.iter().map(|worker| full_name("workers", worker)).collect(),
        queues: new.queues,
        max_transfer_bytes: u32::try_from(new.max_transfer)
            .context("--max-transfer: at most 4MiB")?,
        vectors: new.vectors,
        limits: new.limits.of_new(),
        ..Controller::default()
    };
    Ok(CreateControllerRequest {
        controller_id: new.name,
        controller: Some(controller),
        request_id: new.change.request_id,
        validate_only: new.change.dry_run,
    })
}

async fn workers(verb: WorkerVerb, access: &Access) -> anyhow::Result<ExitCode> {
    let mut session = Session::open(access).await?;
    match verb {
        WorkerVerb::List => {
            let found = all!(session.workers, list_workers, ListWorkersRequest {}, workers);
            list("Worker", &found, show::WORKER, access.output)
        }
        WorkerVerb::Get { name } => {
            let request = GetWorkerRequest { name: full_name("workers", &name) };
            let worker = answer(session.workers.get_worker(request).await)?;
            one("Worker", &worker, show::WORKER, access.output)
        }
    }
}
