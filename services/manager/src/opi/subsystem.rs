//! Subsystems.

use super::mask::Fields;
use super::{changed, name, plain, stats};
use crate::grpc::error::{invalid, missing};
use crate::grpc::request::changeable;
use crate::grpc::{Api, page, subsystem as v1_subsystem};
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::view::View;
use service::config;
use tonic::{Response, Status};
use vireo_api::opi::{
    CreateNvmeSubsystemRequest, ListNvmeSubsystemsRequest, ListNvmeSubsystemsResponse,
    NvmeSubsystem, NvmeSubsystemSpec, NvmeSubsystemStatus, UpdateNvmeSubsystemRequest, VolumeStats,
};

/// Most namespaces of a subsystem, and of each of its controllers.
pub(super) const MAX_NAMESPACES: i32 = ipc::layout::MAX_NAMESPACES as i32;
const MESSAGE: &str = "nvme_subsystem";
const SPEC: &str = "nvme_subsystem.spec";
const FIELDS: Fields = Fields {
    below: "spec.",
    known: &["nqn", "serial_number", "model_number", "max_namespaces", "hostnqn", "psk"],
};

impl Api {
    pub(super) async fn opi_create_subsystem(
        &self,
        request: CreateNvmeSubsystemRequest,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        let wanted = request.nvme_subsystem.ok_or_else(|| invalid(MESSAGE, "is missing"))?;
        let spec = wanted.spec.ok_or_else(|| invalid(SPEC, "is missing"))?;
        check(&spec)?;
        let id = name::id_or_new(request.nvme_subsystem_id)?;
        let mut made = with_spec(
            config::Subsystem {
                name: id.clone(),
                nqn: None,
                serial: String::new(),
                model: String::new(),
                frontend: String::new(),
                namespaces: Vec::new(),
            },
            &spec,
            FIELDS.known,
        );
        let work = move |view: &mut View| {
            let object = Object::Subsystem(made.name.clone());
            if let Some(there) = view.desired.config.subsystem(&made.name) {
                let same = (&there.serial, &there.model) == (&made.serial, &made.model)
                    && has_nqn(view, there, made.nqn.as_deref());
                return if same { Ok(object) } else { Err(EditError::Exists(object)) };
            }
            let config = &mut view.desired.config;
            let first = config.frontends.first();
            made.frontend = first.map(|frontend| frontend.name.clone()).unwrap_or_default();
            config.subsystems.push(made);
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let edited = self.change(plain(), work).await.map_err(|error| refused(error, &id))?;
        answer(&edited.view, &edited.object, &id)
    }

    pub(super) async fn opi_update_subsystem(
        &self,
        request: UpdateNvmeSubsystemRequest,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        let wanted = request.nvme_subsystem.ok_or_else(|| invalid(MESSAGE, "is missing"))?;
        let id = name::parse_subsystem(&format!("{MESSAGE}.name"), &wanted.name)?;
        let object = Object::Subsystem(id.clone());
        if !object.is_in(&self.manager.config()) {
            if !request.allow_missing {
                return Err(missing(&name::subsystem(&id)));
            }
            let create =
                CreateNvmeSubsystemRequest { nvme_subsystem: Some(wanted), nvme_subsystem_id: id };
            return self.opi_create_subsystem(create).await;
        }
        let spec = wanted.spec.unwrap_or_default();
        let mask = FIELDS.named(request.update_mask.as_ref(), |field| is_set(&spec, field))?;
        let spec = only(spec, &mask);
        check(&spec)?;
        let work = move |view: &mut View| {
            let Object::Subsystem(name) = &object else { return Err(EditError::Missing(object)) };
            let Some(now) = view.desired.config.subsystem(name).cloned() else {
                return Err(EditError::Missing(object));
            };
            let mut after = with_spec(now.clone(), &spec, &mask);
            if has_nqn(view, &now, after.nqn.as_deref()) {
                after.nqn.clone_from(&now.nqn);
            }
            if after != now {
                changeable(view, &object)?;
            }
            let subsystems = view.desired.config.subsystems.iter_mut();
            for old in subsystems.filter(|old| old.name == *name) {
                *old = after.clone();
            }
            Ok(object)
        };
        let edited = self.change(plain(), work).await.map_err(|error| refused(error, &id))?;
        answer(&edited.view, &edited.object, &id)
    }

    pub(super) async fn opi_delete_subsystem(
        &self,
        name: &str,
        allow_missing: bool,
    ) -> Result<Response<()>, Status> {
        let id = name::parse_subsystem("name", name)?;
        let object = Object::Subsystem(id.clone());
        let deleted = object.clone();
        let work = move |view: &mut View| {
            if allow_missing && !object.is_in(&view.desired.config) {
                return Ok(object);
            }
            changeable(view, &object)?;
            if let Some(first) = first_of_it(view, &object) {
                let reason = format!("it has {first}: delete that first");
                return Err(EditError::InTheWay { object, reason });
            }
            v1_subsystem::remove(view, &object, false)?;
            Ok(object)
        };
        self.change(plain(), work).await.map_err(|error| refused(error, &id))?;
        Ok(changed((), &deleted))
    }

    pub(super) fn opi_get_subsystem(&self, name: &str) -> Result<Response<NvmeSubsystem>, Status> {
        let id = name::parse_subsystem("name", name)?;
        answer(&self.manager.view(), &Object::Subsystem(id.clone()), &id)
    }

    pub(super) fn opi_list_subsystems(
        &self,
        request: &ListNvmeSubsystemsRequest,
    ) -> Result<Response<ListNvmeSubsystemsResponse>, Status> {
        let view = self.manager.view();
        let names = view.desired.config.subsystems.iter().map(|subsystem| &subsystem.name);
        let subsystems = names.filter_map(|name| {
            Some((name.clone(), shown(&view, &Object::Subsystem(name.clone()))?))
        });
        let (nvme_subsystems, next_page_token) =
            page::page(subsystems.collect(), request.page_size, &request.page_token)?;
        Ok(Response::new(ListNvmeSubsystemsResponse { nvme_subsystems, next_page_token }))
    }

    pub(super) async fn opi_subsystem_stats(&self, name: &str) -> Result<VolumeStats, Status> {
        let id = name::parse_subsystem("name", name)?;
        let object = Object::Subsystem(id.clone());
        if !object.is_in(&self.manager.config()) {
            return Err(missing(&name::subsystem(&id)));
        }
        stats::of(self, object).await
    }
}

/// What cannot be had, whoever asks.
fn check(spec: &NvmeSubsystemSpec) -> Result<(), Status> {
    let wrong = |field: &str, text: &str| Err(invalid(format!("{SPEC}.{field}"), text));
    if !spec.hostnqn.is_empty() {
        return wrong("hostnqn", "a host on PCIe has no name; leave it empty");
    }
    if !spec.psk.is_empty() {
        return wrong("psk", "PCIe knows no keys; leave it empty");
    }
    check_namespaces(SPEC, spec.max_namespaces)
}

/// As many namespaces as a caller needs must be possible.
pub(super) fn check_namespaces(spec: &str, wanted: i64) -> Result<(), Status> {
    if (0..=i64::from(MAX_NAMESPACES)).contains(&wanted) {
        return Ok(());
    }
    let text = format!("is out of range; write 0 to {MAX_NAMESPACES}");
    Err(invalid(format!("{spec}.max_namespaces"), text))
}

fn is_set(spec: &NvmeSubsystemSpec, field: &str) -> bool {
    match field {
        "nqn" => !spec.nqn.is_empty(),
        "serial_number" => !spec.serial_number.is_empty(),
        "model_number" => !spec.model_number.is_empty(),
        "max_namespaces" => spec.max_namespaces != 0,
        "hostnqn" => !spec.hostnqn.is_empty(),
        "psk" => !spec.psk.is_empty(),
        _ => false,
    }
}

/// The message without what `mask` does not name.
fn only(mut spec: NvmeSubsystemSpec, mask: &[&str]) -> NvmeSubsystemSpec {
    for field in FIELDS.known.iter().filter(|field| !mask.contains(field)) {
        match *field {
            "nqn" => spec.nqn.clear(),
            "serial_number" => spec.serial_number.clear(),
            "model_number" => spec.model_number.clear(),
            "max_namespaces" => spec.max_namespaces = 0,
            "hostnqn" => spec.hostnqn.clear(),
            "psk" => spec.psk.clear(),
            _ => {}
        }
    }
    spec
}

/// The subsystem with the fields of `mask` as wanted, or by default.
fn with_spec(
    mut subsystem: config::Subsystem,
    spec: &NvmeSubsystemSpec,
    mask: &[&str],
) -> config::Subsystem {
    let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
    for field in mask {
        match *field {
            "nqn" => subsystem.nqn = (!spec.nqn.is_empty()).then(|| spec.nqn.clone()),
            "serial_number" => {
                subsystem.serial = or(&spec.serial_number, config::DEFAULT_SERIAL);
            }
            "model_number" => subsystem.model = or(&spec.model_number, config::DEFAULT_MODEL),
            _ => {}
        }
    }
    subsystem
}

/// True if the subsystem has the wanted NQN; without a wish, one that was made up.
fn has_nqn(view: &View, subsystem: &config::Subsystem, wanted: Option<&str>) -> bool {
    match wanted {
        None => subsystem.nqn.is_none(),
        wanted => view.desired.identities.nqn(subsystem) == wanted,
    }
}

/// A controller or namespace of a subsystem, by OPI's name.
fn first_of_it(view: &View, object: &Object) -> Option<String> {
    let Object::Subsystem(name) = object else { return None };
    let config = &view.desired.config;
    let controller = config.endpoints.iter().find(|endpoint| endpoint.subsystem == *name);
    let controller = controller.map(|endpoint| name::controller(name, &endpoint.name));
    let namespace = || {
        let nsid = config.subsystem(name)?.namespaces.first()?.nsid;
        Some(name::namespace(name, &name::namespace_id(view, name, nsid)))
    };
    controller.or_else(namespace)
}

fn refused(error: EditError, id: &str) -> Status {
    super::error::edit(error, &name::subsystem(id), |key| match key {
        "name" => format!("{MESSAGE}_id"),
        "serial" => format!("{SPEC}.serial_number"),
        "model" => format!("{SPEC}.model_number"),
        key => format!("{SPEC}.{key}"),
    })
}

fn answer(view: &View, object: &Object, id: &str) -> Result<Response<NvmeSubsystem>, Status> {
    let subsystem = shown(view, object).ok_or_else(|| missing(&name::subsystem(id)))?;
    Ok(changed(subsystem, object))
}

fn shown(view: &View, object: &Object) -> Option<NvmeSubsystem> {
    let Object::Subsystem(id) = object else { return None };
    let subsystem = v1_subsystem::shown(view, object)?;
    Some(NvmeSubsystem {
        name: name::subsystem(id),
        spec: Some(NvmeSubsystemSpec {
            nqn: subsystem.nqn,
            serial_number: subsystem.serial,
            model_number: subsystem.model,
            max_namespaces: MAX_NAMESPACES.into(),
            ..NvmeSubsystemSpec::default()
        }),
        status: Some(NvmeSubsystemStatus {
            firmware_revision: env!("CARGO_PKG_VERSION").to_owned(),
            fru_guid: Vec::new(),
        }),
    })
}
