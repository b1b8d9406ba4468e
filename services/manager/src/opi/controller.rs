//! Controllers: endpoints over vfio-user.

use super::endpoint::{Place, check_transport};
use super::mask::Fields;
use super::subsystem::{MAX_NAMESPACES, check_namespaces};
use super::{changed, limits, name, plain, stats};
use crate::grpc::error::{invalid, missing};
use crate::grpc::request::changeable;
use crate::grpc::{Api, controller as v1_controller, page};
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::view::View;
use service::config::{Config, DEFAULT_QUEUES, Doorbells, Endpoint, Limits};
use tonic::{Response, Status};
use vireo_api::opi::nvme_controller_spec::Endpoint as At;
use vireo_api::opi::{
    CreateNvmeControllerRequest, ListNvmeControllersRequest, ListNvmeControllersResponse,
    NvmeController, NvmeControllerSpec, NvmeControllerStatus, NvmeTransportType, QosLimit,
    UpdateNvmeControllerRequest, VolumeStats,
};
use vireo_api::v1::Controller;

const MESSAGE: &str = "nvme_controller";
const SPEC: &str = "nvme_controller.spec";
const FIELDS: Fields = Fields {
    below: "spec.",
    known: &[
        "nvme_controller_id",
        "trtype",
        "pcie_id",
        "fabrics_id",
        "max_nsq",
        "max_ncq",
        "sqes",
        "cqes",
        "max_namespaces",
        "min_limit",
        "max_limit",
    ],
};
/// Most I/O queue pairs of a controller.
const MAX_QUEUES: u32 = ipc::layout::MAX_QUEUES as u32 - 1;
/// Sizes of queue entries as powers of two (NVMe Base 2.0c figure 275, SQES and CQES).
const SQES: i32 = 6;
const CQES: i32 = 4;
/// Largest controller identifier that NVMe has for controllers in use (NVMe Base 2.0c 3.1.3).
const MAX_CNTLID: i32 = 0xFFEF;

/// What of a message becomes a part of the endpoint.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    place: Option<Place>,
    queues: Option<u32>,
    limits: Limits,
}

impl Api {
    pub(super) async fn opi_create_controller(
        &self,
        request: CreateNvmeControllerRequest,
    ) -> Result<Response<NvmeController>, Status> {
        let subsystem = name::parse_subsystem("parent", &request.parent)?;
        let wanted = request.nvme_controller.ok_or_else(|| invalid(MESSAGE, "is missing"))?;
        let spec = wanted.spec.ok_or_else(|| invalid(SPEC, "is missing"))?;
        check_transport(SPEC, spec.trtype)?;
        let wanted = read(&spec)?;
        let id = name::id_or_new(request.nvme_controller_id)?;
        let (parent, new) = (Object::Subsystem(subsystem.clone()), id.clone());
        let work = move |view: &mut View| {
            if !parent.is_in(&view.desired.config) {
                return Err(EditError::Missing(parent));
            }
            let object = Object::Controller(new.clone());
            let Object::Subsystem(subsystem) = &parent else {
                return Err(EditError::Missing(parent));
            };
            let config = &mut view.desired.config;
            let added = endpoint(config, new, subsystem, wanted);
            if let Some(there) = config.endpoints.iter().find(|e| e.name == added.name) {
                let same = (&there.subsystem, &there.path) == (&added.subsystem, &added.path)
                    && (there.queues, there.limits) == (added.queues, added.limits);
                return if same { Ok(object) } else { Err(EditError::Exists(object)) };
            }
            config.endpoints.push(added);
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let own = name::controller(&subsystem, &id);
        let edited = self.change(plain(), work).await.map_err(|error| refused(error, &own))?;
        self.opi_controller_answer(&edited.view, &edited.object, &own).await
    }

    pub(super) async fn opi_update_controller(
        &self,
        request: UpdateNvmeControllerRequest,
    ) -> Result<Response<NvmeController>, Status> {
        let wanted = request.nvme_controller.ok_or_else(|| invalid(MESSAGE, "is missing"))?;
        let field = format!("{MESSAGE}.name");
        let (subsystem, id) = name::parse_child(&field, &wanted.name, name::CONTROLLERS)?;
        let own = name::controller(&subsystem, &id);
        let object = Object::Controller(id.clone());
        if shown(&self.manager.view(), &object, &own).is_none() {
            if !request.allow_missing {
                return Err(missing(&own));
            }
            let create = CreateNvmeControllerRequest {
                parent: name::subsystem(&subsystem),
                nvme_controller: Some(wanted),
                nvme_controller_id: id,
            };
            return self.opi_create_controller(create).await;
        }
        let spec = wanted.spec.unwrap_or_default();
        let mask = FIELDS.named(request.update_mask.as_ref(), |field| is_set(&spec, field))?;
        if mask.contains(&"trtype") {
            check_transport(SPEC, spec.trtype)?;
        }
        let wanted = read(&only(spec, &mask))?;
        let work = move |view: &mut View| {
            let config = &view.desired.config;
            let now = config.endpoints.iter().find(|e| e.name == id).cloned();
            let Some(now) = now else { return Err(EditError::Missing(object)) };
            let mut after = now.clone();
            if let Some(place) = wanted.place {
                after.path = config.runtime_dir.join(place.to_string());
            }
            if mask.iter().any(|field| matches!(*field, "max_nsq" | "max_ncq")) {
                after.queues = wanted.queues.unwrap_or(DEFAULT_QUEUES);
            }
            if mask.contains(&"max_limit") {
                after.limits = wanted.limits;
            }
            if after != now {
                changeable(view, &object)?;
            }
            let endpoints = view.desired.config.endpoints.iter_mut();
            for old in endpoints.filter(|old| old.name == now.name) {
                *old = after.clone();
            }
            Ok(object)
        };
        let edited = self.change(plain(), work).await.map_err(|error| refused(error, &own))?;
        self.opi_controller_answer(&edited.view, &edited.object, &own).await
    }

    pub(super) async fn opi_delete_controller(
        &self,
        name: &str,
        allow_missing: bool,
    ) -> Result<Response<()>, Status> {
        let (subsystem, id) = name::parse_child("name", name, name::CONTROLLERS)?;
        let own = name::controller(&subsystem, &id);
        let object = Object::Controller(id);
        let deleted = object.clone();
        let client = self.client(&object).await;
        let its_name = own.clone();
        let work = move |view: &mut View| {
            if shown(view, &object, &its_name).is_none() {
                return if allow_missing { Ok(object) } else { Err(EditError::Missing(object)) };
            }
            changeable(view, &object)?;
            if let Some(client) = client {
                let reason = format!("a client is connected (pid {}): stop it", client.pid);
                return Err(EditError::InTheWay { object, reason });
            }
            let endpoints = &mut view.desired.config.endpoints;
            endpoints.retain(|endpoint| Object::Controller(endpoint.name.clone()) != object);
            view.made.objects.remove(&object);
            Ok(object)
        };
        self.change(plain(), work).await.map_err(|error| refused(error, &own))?;
        Ok(changed((), &deleted))
    }

    pub(super) async fn opi_get_controller(
        &self,
        name: &str,
    ) -> Result<Response<NvmeController>, Status> {
        let (_, id) = name::parse_child("name", name, name::CONTROLLERS)?;
        self.opi_controller_answer(&self.manager.view(), &Object::Controller(id), name).await
    }

    pub(super) async fn opi_list_controllers(
        &self,
        request: ListNvmeControllersRequest,
    ) -> Result<Response<ListNvmeControllersResponse>, Status> {
        let parent = name::parse_parent(&request.parent)?;
        let view = self.manager.view();
        let config = &view.desired.config;
        if let Some(parent) = parent.as_ref().filter(|parent| config.subsystem(parent).is_none()) {
            return Err(missing(&name::subsystem(parent)));
        }
        let of_it = |e: &&Endpoint| parent.as_ref().is_none_or(|parent| e.subsystem == *parent);
        let found = config.endpoints.iter().filter(of_it).map(|e| {
            let key = format!("{}/{}", e.subsystem, e.name);
            (key, (e.name.clone(), name::controller(&e.subsystem, &e.name)))
        });
        let (found, next_page_token) =
            page::page(found.collect(), request.page_size, &request.page_token)?;
        let connected = self.manager.connected().await;
        let controllers = found.into_iter().filter_map(|(id, own)| {
            let active = connected.get(&id) == Some(&true);
            let controller = shown(&view, &Object::Controller(id), &own)?;
            Some(with_status(controller, active))
        });
        let nvme_controllers = controllers.collect();
        Ok(Response::new(ListNvmeControllersResponse { nvme_controllers, next_page_token }))
    }

    pub(super) async fn opi_controller_stats(&self, name: &str) -> Result<VolumeStats, Status> {
        let (_, id) = name::parse_child("name", name, name::CONTROLLERS)?;
        let object = Object::Controller(id);
        if shown(&self.manager.view(), &object, name).is_none() {
            return Err(missing(name));
        }
        stats::of(self, object).await
    }

    async fn opi_controller_answer(
        &self,
        view: &View,
        object: &Object,
        own: &str,
    ) -> Result<Response<NvmeController>, Status> {
        let controller = shown(view, object, own).ok_or_else(|| missing(own))?;
        let active = self.client(object).await.is_some();
        Ok(changed(with_status(controller, active), object))
    }
}

/// Reads a message, of which nothing may ask for what cannot be had. The transport is looked at where it is wanted.
fn read(spec: &NvmeControllerSpec) -> Result<Wanted, Status> {
    let wrong = |field: &str, text: &str| invalid(format!("{SPEC}.{field}"), text);
    if spec.min_limit.is_some_and(|limit| limit != QosLimit::default()) {
        return Err(wrong("min_limit", "no rate is guaranteed; leave it out"));
    }
    if spec.nvme_controller_id.is_some_and(|id| !(0..=MAX_CNTLID).contains(&id)) {
        return Err(wrong("nvme_controller_id", "is out of range; leave it out"));
    }
    check_namespaces(SPEC, spec.max_namespaces.into())?;
    let count = |field: &str, value: i32| match u32::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value.min(MAX_QUEUES))),
        Err(_) => Err(wrong(field, "is negative; write 0 or more")),
    };
    let counts = [count("max_nsq", spec.max_nsq)?, count("max_ncq", spec.max_ncq)?];
    Ok(Wanted {
        place: Place::wanted(SPEC, spec.endpoint.as_ref())?,
        queues: counts.into_iter().flatten().min(),
        limits: limits::parse(&format!("{SPEC}.max_limit"), spec.max_limit.as_ref())?,
    })
}

fn is_set(spec: &NvmeControllerSpec, field: &str) -> bool {
    match field {
        "nvme_controller_id" => spec.nvme_controller_id.is_some(),
        "trtype" => spec.trtype != 0,
        "pcie_id" => matches!(spec.endpoint, Some(At::PcieId(_))),
        "fabrics_id" => matches!(spec.endpoint, Some(At::FabricsId(_))),
        "max_nsq" => spec.max_nsq != 0,
        "max_ncq" => spec.max_ncq != 0,
        "max_namespaces" => spec.max_namespaces != 0,
        "min_limit" => spec.min_limit.is_some(),
        "max_limit" => spec.max_limit.is_some(),
        // Entry sizes, which are not taken.
        _ => false,
    }
}

/// The message without what `mask` does not name.
fn only(mut spec: NvmeControllerSpec, mask: &[&str]) -> NvmeControllerSpec {
    for field in FIELDS.known.iter().filter(|field| !mask.contains(field)) {
        match *field {
            "nvme_controller_id" => spec.nvme_controller_id = None,
            "pcie_id" if is_set(&spec, field) => spec.endpoint = None,
            "fabrics_id" if is_set(&spec, field) => spec.endpoint = None,
            "max_nsq" => spec.max_nsq = 0,
            "max_ncq" => spec.max_ncq = 0,
            "max_namespaces" => spec.max_namespaces = 0,
            "min_limit" => spec.min_limit = None,
            "max_limit" => spec.max_limit = None,
            _ => {}
        }
    }
    spec
}

/// The endpoint that a new controller is.
fn endpoint(config: &Config, name: String, subsystem: &str, wanted: Wanted) -> Endpoint {
    let place = wanted.place.map(|place| config.runtime_dir.join(place.to_string()));
    let controller = Controller {
        path: place.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        queues: wanted.queues.unwrap_or_default(),
        ..Controller::default()
    };
    let doorbells = Doorbells::Mapped;
    let by_default =
        v1_controller::endpoint(config, name, subsystem, doorbells, Vec::new(), &controller);
    Endpoint { limits: wanted.limits, ..by_default }
}

fn refused(error: EditError, own: &str) -> Status {
    super::error::edit(error, own, |key| match key {
        "name" => format!("{MESSAGE}_id"),
        "path" => format!("{SPEC}.pcie_id"),
        "queues" => format!("{SPEC}.max_nsq"),
        key if key.starts_with("limits") => format!("{SPEC}.max_limit{}", limits::field(key)),
        key => format!("{SPEC}.{key}"),
    })
}

/// The controller, if `own` is its name; without its status.
fn shown(view: &View, object: &Object, own: &str) -> Option<NvmeController> {
    let Object::Controller(id) = object else { return None };
    let config = &view.desired.config;
    let endpoint = config.endpoints.iter().find(|endpoint| endpoint.name == *id)?;
    let queues = i32::try_from(endpoint.queues).unwrap_or(i32::MAX);
    let place = Place::of(&endpoint.path, &config.runtime_dir);
    let spec = NvmeControllerSpec {
        trtype: NvmeTransportType::Pcie.into(),
        endpoint: place.map(Place::message),
        max_nsq: queues,
        max_ncq: queues,
        sqes: SQES,
        cqes: CQES,
        max_namespaces: MAX_NAMESPACES,
        max_limit: limits::told(&endpoint.limits),
        ..NvmeControllerSpec::default()
    };
    let name = name::controller(&endpoint.subsystem, id);
    (name == own).then_some(NvmeController { name, spec: Some(spec), status: None })
}

fn with_status(controller: NvmeController, active: bool) -> NvmeController {
    NvmeController { status: Some(NvmeControllerStatus { active }), ..controller }
}
