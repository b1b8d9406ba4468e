//! Controllers: the endpoints, and who is connected to them.

use super::deletion::Deletion;
use super::limits::{self, Change};
use super::pause::Wanted;
use super::request::{absent, call, changeable, common, compare_etag, etag, named};
use super::{Api, audited, error, page};
use crate::counters::Client;
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::pause;
use crate::view::View;
use service::config::{self, Config, Doorbells, Endpoint, Limits};
use tonic::{Request, Response, Status};
use vireo_api::v1;
use vireo_api::v1::controller_service_server::ControllerService;
use vireo_api::v1::{
    Controller, CreateControllerRequest, DeleteControllerRequest, DoorbellMode,
    GetControllerRequest, ListControllersRequest, ListControllersResponse, PauseControllerRequest,
    PauseState, ResumeControllerRequest, UpdateControllerRequest,
};

const PATTERN: &str = "controllers/{controller}";

#[tonic::async_trait]
impl ControllerService for Api {
    async fn get_controller(
        &self,
        request: Request<GetControllerRequest>,
    ) -> Result<Response<Controller>, Status> {
        let object = controller_named(&request.into_inner().name)?;
        let mut controller = shown(&self.manager.view(), &object)
            .ok_or_else(|| error::missing(&object.to_string()))?;
        self.fill_client(&mut controller, &object).await;
        controller.pause_state = self.pause_state(&object).await.into();
        Ok(Response::new(controller))
    }

    async fn list_controllers(
        &self,
        request: Request<ListControllersRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let request = request.into_inner();
        let view = self.manager.view();
        let endpoints = view.desired.config.endpoints.iter();
        let endpoints = endpoints.map(|found| (found.name.clone(), found.clone())).collect();
        let (endpoints, next_page_token) =
            page::page(endpoints, request.page_size, &request.page_token)?;
        let connected = self.manager.connected().await;
        let pauses = pause::overview(self.manager.peers()).await;
        let mut controllers = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let mut controller = controller(&view, &endpoint);
            let object = Object::Controller(endpoint.name.clone());
            // One question more only for those that have a client, or are paused.
            if connected.get(&endpoint.name) == Some(&true) {
                self.fill_client(&mut controller, &object).await;
            }
            if pauses.paused_controllers.contains(&endpoint.name) {
                controller.pause_state = self.pause_state(&object).await.into();
            } else if pauses.controllers.contains(&endpoint.name) {
                controller.pause_state = PauseState::Running.into();
            }
            controllers.push(controller);
        }
        Ok(Response::new(ListControllersResponse { controllers, next_page_token }))
    }

    async fn create_controller(
        &self,
        request: Request<CreateControllerRequest>,
    ) -> Result<Response<Controller>, Status> {
        let request = request.into_inner();
        let call = call("CreateController", &request, &request.request_id, request.validate_only)?;
        let wanted =
            request.controller.ok_or_else(|| error::invalid("controller", "is missing"))?;
        let id = request.controller_id;
        let parent = super::subsystem::subsystem_named("controller.subsystem", &wanted.subsystem)?;
        let doorbells = match DoorbellMode::try_from(wanted.doorbells) {
            Ok(DoorbellMode::Mapped | DoorbellMode::Unspecified) => Doorbells::Mapped,
            Ok(DoorbellMode::Shadow) => Doorbells::Shadow,
            Err(_) => return Err(error::invalid("controller.doorbells", "is not known")),
        };
        let named_workers = workers(&wanted.workers)?;
        let limits = limits::parse("controller.limits", wanted.limits.as_ref())?;
        let work = move |view: &mut View| {
            let object = Object::Controller(id.clone());
            absent(view, &object)?;
            let Object::Subsystem(subsystem) = &parent else {
                return Err(EditError::Missing(parent));
            };
            if !parent.is_in(&view.desired.config) {
                return Err(EditError::Missing(parent));
            }
            let config = &mut view.desired.config;
            let added = Endpoint {
                limits,
                ..endpoint(config, id, subsystem, doorbells, named_workers, &wanted)
            };
            config.endpoints.push(added);
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        let controller = shown(&edited.view, &edited.object)
            .ok_or_else(|| error::missing(&edited.object.to_string()))?;
        Ok(audited(controller, &edited.object))
    }

    async fn update_controller(
        &self,
        request: Request<UpdateControllerRequest>,
    ) -> Result<Response<Controller>, Status> {
        let request = request.into_inner();
        let call = call("UpdateController", &request, &request.request_id, request.validate_only)?;
        let wanted =
            request.controller.ok_or_else(|| error::invalid("controller", "is missing"))?;
        let object = controller_named_in("controller.name", &wanted.name)?;
        let change = Change::of(request.update_mask.as_ref(), wanted.limits.as_ref())?;
        let limits = limits::parse("controller.limits", wanted.limits.as_ref())?;
        let work = move |view: &mut View| {
            changeable(view, &object)?;
            let now = shown(view, &object).ok_or(EditError::Missing(object.clone()))?;
            compare_etag(&object, &wanted.etag, &now.etag)?;
            if let Some(field) = fixed(&wanted, &now) {
                let reason = format!("{field} cannot change: delete it and make it anew");
                return Err(EditError::InTheWay { object, reason });
            }
            let endpoints = view.desired.config.endpoints.iter_mut();
            for found in endpoints.filter(|e| Object::Controller(e.name.clone()) == object) {
                found.limits = change.apply(found.limits, limits);
            }
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        let mut controller = shown(&edited.view, &edited.object)
            .ok_or_else(|| error::missing(&edited.object.to_string()))?;
        self.fill_client(&mut controller, &edited.object).await;
        controller.pause_state = self.pause_state(&edited.object).await.into();
        Ok(audited(controller, &edited.object))
    }

    async fn pause_controller(
        &self,
        request: Request<PauseControllerRequest>,
    ) -> Result<Response<Controller>, Status> {
        let request = request.into_inner();
        let object = controller_named(&request.name)?;
        let wanted = Wanted {
            timeout: request.timeout.as_ref(),
            max_pause: request.max_pause.as_ref(),
            validate_only: request.validate_only,
        };
        self.pause(&object, wanted).await?;
        self.pause_answer(object).await
    }

    async fn resume_controller(
        &self,
        request: Request<ResumeControllerRequest>,
    ) -> Result<Response<Controller>, Status> {
        let request = request.into_inner();
        let object = controller_named(&request.name)?;
        self.resume(&object, request.validate_only).await?;
        self.pause_answer(object).await
    }

    async fn delete_controller(
        &self,
        request: Request<DeleteControllerRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let call = call("DeleteController", &request, &request.request_id, request.validate_only)?;
        let object = controller_named(&request.name)?;
        let client = match request.force {
            true => None,
            false => self.client(&object).await,
        };
        let DeleteControllerRequest { etag, allow_missing, .. } = request;
        let etag_of = |view: &View, object: &Object| shown(view, object).map(|now| now.etag);
        let remove = move |view: &mut View, object: &Object| {
            if let Some(client) = client {
                let reason = format!(
                    "a client is connected (pid {}): stop it, or use force, which takes its drive \
                     away",
                    client.pid
                );
                return Err(EditError::InTheWay { object: object.clone(), reason });
            }
            let endpoints = &mut view.desired.config.endpoints;
            endpoints.retain(|endpoint| Object::Controller(endpoint.name.clone()) != *object);
            Ok(())
        };
        self.delete(call, Deletion { object, etag, allow_missing }, etag_of, remove).await
    }
}

impl Api {
    /// The controller after a pause or a resumption of it.
    async fn pause_answer(&self, object: Object) -> Result<Response<Controller>, Status> {
        let mut controller = shown(&self.manager.view(), &object)
            .ok_or_else(|| error::missing(&object.to_string()))?;
        self.fill_client(&mut controller, &object).await;
        controller.pause_state = self.pause_state(&object).await.into();
        Ok(audited(controller, &object))
    }

    pub(crate) async fn client(&self, object: &Object) -> Option<Client> {
        let Object::Controller(name) = object else { return None };
        let config = self.manager.config();
        crate::counters::client(&config, self.manager.peers(), name).await
    }

    pub(crate) async fn fill_client(&self, controller: &mut Controller, object: &Object) {
        let client = self.client(object).await;
        controller.client = client.map(|client| v1::Client { pid: client.pid, uid: client.uid });
    }
}

/// A field of a controller that is to be another one, and cannot.
fn fixed(wanted: &Controller, now: &Controller) -> Option<&'static str> {
    let text = |wanted: &str, now: &str| !wanted.is_empty() && wanted != now;
    let number = |wanted: u32, now: u32| wanted != 0 && wanted != now;
    [
        ("subsystem", text(&wanted.subsystem, &now.subsystem)),
        ("path", text(&wanted.path, &now.path)),
        ("doorbells", wanted.doorbells != 0 && wanted.doorbells != now.doorbells),
        ("tenant", text(&wanted.tenant, &now.tenant)),
        ("workers", !wanted.workers.is_empty() && wanted.workers != now.workers),
        ("queues", number(wanted.queues, now.queues)),
        ("max_transfer_bytes", number(wanted.max_transfer_bytes, now.max_transfer_bytes)),
        ("vectors", number(wanted.vectors, now.vectors)),
    ]
    .into_iter()
    .find_map(|(field, differs)| differs.then_some(field))
}

/// Names of workers from resource names.
fn workers(names: &[String]) -> Result<Vec<String>, Status> {
    names
        .iter()
        .map(|name| {
            let worker = name.strip_prefix("workers/").filter(|worker| !worker.is_empty());
            worker.map(str::to_owned).ok_or_else(|| {
                let text = format!("\"{name}\" is not like workers/{{worker}}");
                error::invalid("controller.workers", text)
            })
        })
        .collect()
}

/// What a caller wants, with defaults, as an endpoint.
pub(crate) fn endpoint(
    config: &Config,
    name: String,
    subsystem: &str,
    doorbells: Doorbells,
    workers: Vec<String>,
    wanted: &Controller,
) -> Endpoint {
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let tenant = match wanted.tenant.as_str() {
        "" => config::DEFAULT_TENANT.to_owned(),
        tenant => tenant.to_owned(),
    };
    let all = || {
        let of_tenant = config.workers.iter().filter(|worker| worker.tenant == tenant);
        of_tenant.map(|worker| worker.name.clone()).collect()
    };
    let queues = or(wanted.queues, config::DEFAULT_QUEUES);
    Endpoint {
        subsystem: subsystem.to_owned(),
        path: match wanted.path.as_str() {
            "" => config.runtime_dir.join(&name),
            path => path.into(),
        },
        name,
        doorbells,
        workers: if workers.is_empty() { all() } else { workers },
        tenant,
        queues,
        max_transfer: or(wanted.max_transfer_bytes, config::DEFAULT_MAX_TRANSFER),
        vectors: or(wanted.vectors, queues.saturating_add(1)),
        limits: Limits::default(),
    }
}

pub(super) fn controller_named(name: &str) -> Result<Object, Status> {
    controller_named_in("name", name)
}

fn controller_named_in(field: &str, name: &str) -> Result<Object, Status> {
    named(field, name, PATTERN, |object| matches!(object, Object::Controller(_)))
}

pub(crate) fn shown(view: &View, object: &Object) -> Option<Controller> {
    let Object::Controller(name) = object else { return None };
    let mut endpoints = view.desired.config.endpoints.iter();
    endpoints.find(|endpoint| endpoint.name == *name).map(|found| controller(view, found))
}

fn controller(view: &View, found: &Endpoint) -> Controller {
    let object = Object::Controller(found.name.clone());
    let doorbells = match found.doorbells {
        Doorbells::Mapped => DoorbellMode::Mapped,
        Doorbells::Shadow => DoorbellMode::Shadow,
    };
    let mut controller = Controller {
        name: object.to_string(),
        subsystem: Object::Subsystem(found.subsystem.clone()).to_string(),
        path: found.path.to_string_lossy().into_owned(),
        doorbells: doorbells.into(),
        tenant: found.tenant.clone(),
        workers: found.workers.iter().map(|worker| format!("workers/{worker}")).collect(),
        queues: found.queues,
        max_transfer_bytes: found.max_transfer,
        vectors: found.vectors,
        limits: limits::shown(&found.limits),
        ..Controller::default()
    };
    controller.etag = etag(&controller);
    let common = common(view, &object);
    (controller.origin, controller.state) = (common.origin, common.state);
    controller.state_message = common.state_message;
    controller.create_time = common.create_time;
    controller
}
