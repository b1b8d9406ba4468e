//! Subsystems.

use super::deletion::Deletion;
use super::request::{absent, call, common, etag, named};
use super::{Api, audited, error, page};
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::view::View;
use service::config;
use tonic::{Request, Response, Status};
use vireo_api::v1::subsystem_service_server::SubsystemService;
use vireo_api::v1::{
    CreateSubsystemRequest, DeleteSubsystemRequest, GetSubsystemRequest, ListSubsystemsRequest,
    ListSubsystemsResponse, Subsystem,
};

const PATTERN: &str = "subsystems/{subsystem}";

#[tonic::async_trait]
impl SubsystemService for Api {
    async fn get_subsystem(
        &self,
        request: Request<GetSubsystemRequest>,
    ) -> Result<Response<Subsystem>, Status> {
        let object = subsystem_named("name", &request.into_inner().name)?;
        let subsystem = shown(&self.manager.view(), &object);
        subsystem.map(Response::new).ok_or_else(|| error::missing(&object.to_string()))
    }

    async fn list_subsystems(
        &self,
        request: Request<ListSubsystemsRequest>,
    ) -> Result<Response<ListSubsystemsResponse>, Status> {
        let request = request.into_inner();
        let view = self.manager.view();
        let subsystems = view.desired.config.subsystems.iter();
        let subsystems = subsystems.map(|s| (s.name.clone(), subsystem(&view, s))).collect();
        let (subsystems, next_page_token) =
            page::page(subsystems, request.page_size, &request.page_token)?;
        Ok(Response::new(ListSubsystemsResponse { subsystems, next_page_token }))
    }

    async fn create_subsystem(
        &self,
        request: Request<CreateSubsystemRequest>,
    ) -> Result<Response<Subsystem>, Status> {
        let request = request.into_inner();
        let call = call("CreateSubsystem", &request, &request.request_id, request.validate_only)?;
        let wanted = request.subsystem.ok_or_else(|| error::invalid("subsystem", "is missing"))?;
        let or =
            |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let mut made = config::Subsystem {
            name: request.subsystem_id,
            nqn: (!wanted.nqn.is_empty()).then_some(wanted.nqn),
            serial: or(wanted.serial, config::DEFAULT_SERIAL),
            model: or(wanted.model, config::DEFAULT_MODEL),
            frontend: wanted.frontend,
            namespaces: Vec::new(),
        };
        let work = move |view: &mut View| {
            let object = Object::Subsystem(made.name.clone());
            absent(view, &object)?;
            let config = &mut view.desired.config;
            if made.frontend.is_empty() {
                let first = config.frontends.first();
                made.frontend = first.map(|f| f.name.clone()).unwrap_or_default();
            }
            config.subsystems.push(made);
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        let subsystem = shown(&edited.view, &edited.object)
            .ok_or_else(|| error::missing(&edited.object.to_string()))?;
        Ok(audited(subsystem, &edited.object))
    }

    async fn delete_subsystem(
        &self,
        request: Request<DeleteSubsystemRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let call = call("DeleteSubsystem", &request, &request.request_id, request.validate_only)?;
        let object = subsystem_named("name", &request.name)?;
        let DeleteSubsystemRequest { etag, allow_missing, force, .. } = request;
        let etag_of = |view: &View, object: &Object| shown(view, object).map(|now| now.etag);
        let deletion = Deletion { object, etag, allow_missing };
        self.delete(call, deletion, etag_of, move |view, object| remove(view, object, force)).await
    }
}

/// Takes a subsystem out, with all that is in it if `force`.
pub(crate) fn remove(view: &mut View, object: &Object, force: bool) -> Result<(), EditError> {
    let Object::Subsystem(name) = object else { return Err(EditError::Missing(object.clone())) };
    let of_it: Vec<Object> = Object::all(&view.desired.config)
        .into_iter()
        .filter(|other| match other {
            Object::Namespace { subsystem, .. } => subsystem == name,
            Object::Controller(controller) => {
                let mut endpoints = view.desired.config.endpoints.iter();
                endpoints.any(|e| e.name == *controller && e.subsystem == *name)
            }
            Object::Volume(_) | Object::Subsystem(_) => false,
        })
        .collect();
    let in_the_way = |reason| EditError::InTheWay { object: object.clone(), reason };
    if let Some(of_file) = of_it.iter().find(|o| !view.made.objects.contains_key(o)) {
        return Err(in_the_way(format!(
            "{of_file} belongs to the configuration file: remove it there"
        )));
    }
    if let Some(first) = of_it.first().filter(|_| !force) {
        return Err(in_the_way(format!("it has {first}: delete that first, or use force")));
    }
    let config = &mut view.desired.config;
    config.subsystems.retain(|subsystem| subsystem.name != *name);
    config.endpoints.retain(|endpoint| endpoint.subsystem != *name);
    for gone in of_it.iter().chain([object]) {
        view.made.objects.remove(gone);
    }
    Ok(())
}

pub(super) fn subsystem_named(field: &str, name: &str) -> Result<Object, Status> {
    named(field, name, PATTERN, |object| matches!(object, Object::Subsystem(_)))
}

pub(crate) fn shown(view: &View, object: &Object) -> Option<Subsystem> {
    let Object::Subsystem(name) = object else { return None };
    view.desired.config.subsystem(name).map(|found| subsystem(view, found))
}

fn subsystem(view: &View, found: &config::Subsystem) -> Subsystem {
    let object = Object::Subsystem(found.name.clone());
    let mut subsystem = Subsystem {
        name: object.to_string(),
        nqn: view.desired.identities.nqn(found).unwrap_or_default().to_owned(),
        serial: found.serial.clone(),
        model: found.model.clone(),
        frontend: found.frontend.clone(),
        ..Subsystem::default()
    };
    subsystem.etag = etag(&subsystem);
    let common = common(view, &object);
    (subsystem.origin, subsystem.state) = (common.origin, common.state);
    (subsystem.state_message, subsystem.create_time) = (common.state_message, common.create_time);
    subsystem
}
