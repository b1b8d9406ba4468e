//! Controllers: the endpoints, and who is connected to them.

use super::guard::Audited;
use super::request::{absent, call, changeable, common, compare_etag, etag, named};
use super::{Api, error, page};
use crate::counters::Client;
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::view::View;
use service::config::{self, Config, Doorbells, Endpoint};
use tonic::{Request, Response, Status};
use vireo_api::v1;
use vireo_api::v1::controller_service_server::ControllerService;
use vireo_api::v1::{
    Controller, CreateControllerRequest, DeleteControllerRequest, DoorbellMode,
    GetControllerRequest, ListControllersRequest, ListControllersResponse,
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
        let mut controllers = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let mut controller = controller(&view, &endpoint);
            // One question more only for those that have a client.
            if connected.get(&endpoint.name) == Some(&true) {
                self.fill_client(&mut controller, &Object::Controller(endpoint.name)).await;
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
            let added = endpoint(config, id, subsystem, doorbells, named_workers, &wanted);
            config.endpoints.push(added);
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        let controller = shown(&edited.view, &edited.object)
            .ok_or_else(|| error::missing(&edited.object.to_string()))?;
        let mut response = Response::new(controller);
        response.extensions_mut().insert(Audited(edited.object.to_string()));
        Ok(response)
    }

    async fn delete_controller(
        &self,
        request: Request<DeleteControllerRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let call = call("DeleteController", &request, &request.request_id, request.validate_only)?;
        let object = controller_named(&request.name)?;
        let audited = Audited(object.to_string());
        let client = match request.force {
            true => None,
            false => self.client(&object).await,
        };
        let work = move |view: &mut View| {
            if request.allow_missing && !object.is_in(&view.desired.config) {
                return Ok(object);
            }
            changeable(view, &object)?;
            let now = shown(view, &object).ok_or(EditError::Missing(object.clone()))?;
            compare_etag(&object, &request.etag, &now.etag)?;
            if let Some(client) = client {
                let reason = format!(
                    "a client is connected (pid {}): stop it, or use force, which takes its drive \
                     away",
                    client.pid
                );
                return Err(EditError::InTheWay { object, reason });
            }
            let endpoints = &mut view.desired.config.endpoints;
            endpoints.retain(|endpoint| Object::Controller(endpoint.name.clone()) != object);
            view.made.objects.remove(&object);
            Ok(object)
        };
        self.edit(call, work).await?;
        let mut response = Response::new(());
        response.extensions_mut().insert(audited);
        Ok(response)
    }
}

impl Api {
    async fn client(&self, object: &Object) -> Option<Client> {
        let Object::Controller(name) = object else { return None };
        let config = self.manager.config();
        crate::counters::client(&config, self.manager.peers(), name).await
    }

    async fn fill_client(&self, controller: &mut Controller, object: &Object) {
        let client = self.client(object).await;
        controller.client = client.map(|client| v1::Client { pid: client.pid, uid: client.uid });
    }
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
fn endpoint(
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
    }
}

fn controller_named(name: &str) -> Result<Object, Status> {
    named("name", name, PATTERN, |object| matches!(object, Object::Controller(_)))
}

fn shown(view: &View, object: &Object) -> Option<Controller> {
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
        ..Controller::default()
    };
    controller.etag = etag(&controller);
    let common = common(view, &object);
    (controller.origin, controller.state) = (common.origin, common.state);
    controller.state_message = common.state_message;
    controller.create_time = common.create_time;
    controller
}
