//! Namespaces.

use super::deletion::Deletion;
use super::limits::{self, Change};
use super::namespace_names::Names;
use super::pause::Wanted;
use super::request::{call, changeable, common, compare_etag, etag, named};
use super::subsystem::subsystem_named;
use super::{Api, audited, error, page};
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::pause;
use crate::view::View;
use service::config;
use tonic::{Request, Response, Status};
use vireo_api::v1::namespace_service_server::NamespaceService;
use vireo_api::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest,
    ListNamespacesResponse, Namespace, PauseNamespaceRequest, PauseState, ResumeNamespaceRequest,
    UpdateNamespaceRequest,
};

const PATTERN: &str = "subsystems/{subsystem}/namespaces/{nsid}";
/// The parent that stands for all subsystems.
const ALL: &str = "subsystems/-";

#[tonic::async_trait]
impl NamespaceService for Api {
    async fn get_namespace(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<Namespace>, Status> {
        let object = namespace_named(&request.into_inner().name)?;
        let mut namespace = shown(&self.manager.view(), &object)
            .ok_or_else(|| error::missing(&object.to_string()))?;
        namespace.pause_state = self.pause_state(&object).await.into();
        Ok(Response::new(namespace))
    }

    async fn list_namespaces(
        &self,
        request: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let request = request.into_inner();
        let view = self.manager.view();
        let parent = match request.parent.as_str() {
            ALL => None,
            name => Some(subsystem_named("parent", name)?),
        };
        if let Some(parent) = parent.as_ref().filter(|p| !p.is_in(&view.desired.config)) {
            return Err(error::missing(&parent.to_string()));
        }
        let wanted = |subsystem: &&config::Subsystem| {
            parent.as_ref().is_none_or(|p| *p == Object::Subsystem(subsystem.name.clone()))
        };
        let subsystems = view.desired.config.subsystems.iter().filter(wanted);
        let namespaces = subsystems.flat_map(|subsystem| {
            let view = &view;
            subsystem.namespaces.iter().map(move |found| {
                (format!("{}/{:03}", subsystem.name, found.nsid), namespace(view, subsystem, found))
            })
        });
        let (mut namespaces, next_page_token) =
            page::page(namespaces.collect(), request.page_size, &request.page_token)?;
        let pauses = pause::overview(self.manager.peers()).await;
        for namespace in &mut namespaces {
            let Ok(object) = namespace.name.parse::<Object>() else { continue };
            let Object::Namespace { subsystem, nsid } = &object else { continue };
            let short = format!("{subsystem}/{nsid}");
            // A question more only for those that are paused.
            if pauses.paused_namespaces.contains(&short) {
                namespace.pause_state = self.pause_state(&object).await.into();
            } else if pauses.namespaces.contains(&short) {
                namespace.pause_state = PauseState::Running.into();
            }
        }
        Ok(Response::new(ListNamespacesResponse { namespaces, next_page_token }))
    }

    async fn create_namespace(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<Namespace>, Status> {
        let request = request.into_inner();
        let call = call("CreateNamespace", &request, &request.request_id, request.validate_only)?;
        let parent = subsystem_named("parent", &request.parent)?;
        let wanted = request.namespace.ok_or_else(|| error::invalid("namespace", "is missing"))?;
        let volume = named("namespace.volume", &wanted.volume, "volumes/{volume}", |object| {
            matches!(object, Object::Volume(_))
        })?;
        let limits = limits::parse("namespace.limits", wanted.limits.as_ref())?;
        let names = Names::parse(&wanted)?;
        let given = match request.namespace_id.as_str() {
            "" => None,
            text => {
                Some(text.parse().ok().filter(|nsid: &u32| nsid.to_string() == text).ok_or_else(
                    || error::invalid("namespace_id", "is no NSID; write 1 to 256, or nothing"),
                )?)
            }
        };
        let work = move |view: &mut View| {
            let (Object::Subsystem(name), Object::Volume(bdev)) = (&parent, volume) else {
                return Err(EditError::Missing(parent));
            };
            let config = &mut view.desired.config;
            let subsystem = config.subsystems.iter_mut().find(|subsystem| subsystem.name == *name);
            let Some(subsystem) = subsystem else { return Err(EditError::Missing(parent)) };
            let taken = |nsid: &u32| subsystem.namespaces.iter().any(|n| n.nsid == *nsid);
            let lowest = || (1..).find(|nsid| !taken(nsid)).unwrap_or(u32::MAX);
            let nsid = given.unwrap_or_else(lowest);
            let object = Object::Namespace { subsystem: name.clone(), nsid };
            let added = config::Namespace { nsid, bdev, uuid: None, limits };
            if taken(&nsid) {
                return Err(EditError::Exists(object));
            }
            subsystem.namespaces.push(added);
            view.made.objects.insert(object.clone(), now_ms());
            names.give(view, &object)?;
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        let namespace = shown(&edited.view, &edited.object)
            .ok_or_else(|| error::missing(&edited.object.to_string()))?;
        Ok(audited(namespace, &edited.object))
    }

    async fn update_namespace(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<Namespace>, Status> {
        let request = request.into_inner();
        let call = call("UpdateNamespace", &request, &request.request_id, request.validate_only)?;
        let wanted = request.namespace.ok_or_else(|| error::invalid("namespace", "is missing"))?;
        let object = named("namespace.name", &wanted.name, PATTERN, |object| {
            matches!(object, Object::Namespace { .. })
        })?;
        let change = Change::of(request.update_mask.as_ref(), wanted.limits.as_ref())?;
        let limits = limits::parse("namespace.limits", wanted.limits.as_ref())?;
        let work = move |view: &mut View| {
            changeable(view, &object)?;
            let now = shown(view, &object).ok_or(EditError::Missing(object.clone()))?;
            compare_etag(&object, &wanted.etag, &now.etag)?;
            if !wanted.volume.is_empty() && wanted.volume != now.volume {
                let reason = "volume cannot change: delete it and make it anew".to_owned();
                return Err(EditError::InTheWay { object, reason });
            }
            let Object::Namespace { subsystem: name, nsid } = &object else {
                return Err(EditError::Missing(object));
            };
            let subsystems = view.desired.config.subsystems.iter_mut();
            let namespaces = subsystems.filter(|s| s.name == *name).flat_map(|s| &mut s.namespaces);
            for found in namespaces.filter(|namespace| namespace.nsid == *nsid) {
                found.limits = change.apply(found.limits, limits);
            }
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        let mut namespace = shown(&edited.view, &edited.object)
            .ok_or_else(|| error::missing(&edited.object.to_string()))?;
        namespace.pause_state = self.pause_state(&edited.object).await.into();
        Ok(audited(namespace, &edited.object))
    }

    async fn pause_namespace(
        &self,
        request: Request<PauseNamespaceRequest>,
    ) -> Result<Response<Namespace>, Status> {
        let request = request.into_inner();
        let object = namespace_named(&request.name)?;
        let now = shown(&self.manager.view(), &object)
            .ok_or_else(|| error::missing(&object.to_string()))?;
        compare_etag(&object, &request.etag, &now.etag).map_err(error::edit)?;
        let wanted = Wanted {
            timeout: request.timeout.as_ref(),
            max_pause: request.max_pause.as_ref(),
            validate_only: request.validate_only,
        };
        self.pause(&object, wanted).await?;
        self.paused_namespace(object).await
    }

    async fn resume_namespace(
        &self,
        request: Request<ResumeNamespaceRequest>,
    ) -> Result<Response<Namespace>, Status> {
        let request = request.into_inner();
        let object = namespace_named(&request.name)?;
        self.resume(&object, request.validate_only).await?;
        self.paused_namespace(object).await
    }

    async fn delete_namespace(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let call = call("DeleteNamespace", &request, &request.request_id, request.validate_only)?;
        let object = namespace_named(&request.name)?;
        let DeleteNamespaceRequest { etag, allow_missing, .. } = request;
        let etag_of = |view: &View, object: &Object| shown(view, object).map(|now| now.etag);
        let remove = |view: &mut View, object: &Object| {
            let Object::Namespace { subsystem: name, nsid } = object else {
                return Err(EditError::Missing(object.clone()));
            };
            let subsystems = view.desired.config.subsystems.iter_mut();
            for subsystem in subsystems.filter(|subsystem| subsystem.name == *name) {
                subsystem.namespaces.retain(|namespace| namespace.nsid != *nsid);
            }
            Ok(())
        };
        self.delete(call, Deletion { object, etag, allow_missing }, etag_of, remove).await
    }
}

impl Api {
    /// The namespace after a pause or a resumption of it.
    async fn paused_namespace(&self, object: Object) -> Result<Response<Namespace>, Status> {
        let mut namespace = shown(&self.manager.view(), &object)
            .ok_or_else(|| error::missing(&object.to_string()))?;
        namespace.pause_state = self.pause_state(&object).await.into();
        Ok(audited(namespace, &object))
    }
}

fn namespace_named(name: &str) -> Result<Object, Status> {
    named("name", name, PATTERN, |object| matches!(object, Object::Namespace { .. }))
}

pub(crate) fn shown(view: &View, object: &Object) -> Option<Namespace> {
    let Object::Namespace { subsystem, nsid } = object else { return None };
    let subsystem = view.desired.config.subsystem(subsystem)?;
    let found = subsystem.namespaces.iter().find(|namespace| namespace.nsid == *nsid)?;
    Some(namespace(view, subsystem, found))
}

fn namespace(view: &View, subsystem: &config::Subsystem, found: &config::Namespace) -> Namespace {
    let object = Object::Namespace { subsystem: subsystem.name.clone(), nsid: found.nsid };
    let uuid = view.desired.identities.uuid(subsystem, found);
    let mut namespace = Namespace {
        name: object.to_string(),
        nsid: found.nsid,
        volume: Object::Volume(found.bdev.clone()).to_string(),
        uuid: uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        limits: limits::shown(&found.limits),
        opi_id: view.made.ids.get(&object).cloned().unwrap_or_default(),
        ..Namespace::default()
    };
    namespace.etag = etag(&namespace);
    let common = common(view, &object);
    (namespace.origin, namespace.state) = (common.origin, common.state);
    (namespace.state_message, namespace.create_time) = (common.state_message, common.create_time);
    namespace
}
