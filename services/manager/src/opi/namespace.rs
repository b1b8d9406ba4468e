//! Namespaces.

use super::mask::Fields;
use super::volume::referred;
use super::{changed, name, plain, stats};
use crate::grpc::error::{invalid, missing};
use crate::grpc::request::changeable;
use crate::grpc::{Api, namespace as v1_namespace, page, volume as v1_volume};
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::view::{Standing, View};
use service::config::{self, Mistake};
use tonic::{Response, Status};
use vireo_api::opi::nvme_namespace_status::{OperState, State};
use vireo_api::opi::{
    CreateNvmeNamespaceRequest, ListNvmeNamespacesRequest, ListNvmeNamespacesResponse,
    NvmeNamespace, NvmeNamespaceSpec, NvmeNamespaceStatus, UpdateNvmeNamespaceRequest, VolumeStats,
};
use vireo_api::v1::volume;

const MESSAGE: &str = "nvme_namespace";
const SPEC: &str = "nvme_namespace.spec";
const FIELDS: Fields =
    Fields { below: "spec.", known: &["host_nsid", "nguid", "eui64", "uuid", "volume_name_ref"] };

/// A namespace that is to be made.
#[derive(Clone, Debug)]
struct New {
    subsystem: String,
    /// The caller's identifier of it; empty for none.
    id: String,
    nsid: Option<u32>,
    volume: String,
}

impl Api {
    pub(super) async fn opi_create_namespace(
        &self,
        request: CreateNvmeNamespaceRequest,
    ) -> Result<Response<NvmeNamespace>, Status> {
        let subsystem = name::parse_subsystem("parent", &request.parent)?;
        let wanted = request.nvme_namespace.ok_or_else(|| invalid(MESSAGE, "is missing"))?;
        let spec = wanted.spec.ok_or_else(|| invalid(SPEC, "is missing"))?;
        if spec.volume_name_ref.is_empty() {
            let text = "is missing; write nullVolumes/{volume} or another volume's name";
            return Err(invalid(format!("{SPEC}.volume_name_ref"), text));
        }
        let id = request.nvme_namespace_id;
        let own = name::namespace(&subsystem, if id.is_empty() { "-" } else { &id });
        let nsid = nsid(&id, spec.host_nsid)?;
        let new = New { subsystem, id, nsid, volume: spec.volume_name_ref };
        let edited = self.change(plain(), move |view| create(view, new)).await;
        let edited = edited.map_err(|error| refused(error, &own))?;
        answer(&edited.view, &edited.object, &own)
    }

    pub(super) async fn opi_update_namespace(
        &self,
        request: UpdateNvmeNamespaceRequest,
    ) -> Result<Response<NvmeNamespace>, Status> {
        let wanted = request.nvme_namespace.ok_or_else(|| invalid(MESSAGE, "is missing"))?;
        let field = format!("{MESSAGE}.name");
        let (subsystem, id) = name::parse_child(&field, &wanted.name, name::NAMESPACES)?;
        let own = name::namespace(&subsystem, &id);
        let Some(object) = name::namespace_with(&self.manager.view(), &subsystem, &id) else {
            if !request.allow_missing {
                return Err(missing(&own));
            }
            let create = CreateNvmeNamespaceRequest {
                parent: name::subsystem(&subsystem),
                nvme_namespace: Some(wanted),
                nvme_namespace_id: id,
            };
            return self.opi_create_namespace(create).await;
        };
        let spec = wanted.spec.unwrap_or_default();
        let mask = FIELDS.named(request.update_mask.as_ref(), |field| match field {
            "host_nsid" => spec.host_nsid != 0,
            "volume_name_ref" => !spec.volume_name_ref.is_empty(),
            _ => false,
        })?;
        let work = move |view: &mut View| update(view, object, &spec, &mask);
        let edited = self.change(plain(), work).await.map_err(|error| refused(error, &own))?;
        answer(&edited.view, &edited.object, &own)
    }

    pub(super) async fn opi_delete_namespace(
        &self,
        name: &str,
        allow_missing: bool,
    ) -> Result<Response<()>, Status> {
        let (subsystem, id) = name::parse_child("name", name, name::NAMESPACES)?;
        let work = move |view: &mut View| {
            let Some(object) = name::namespace_with(view, &subsystem, &id) else {
                let object = Object::Namespace { subsystem, nsid: 0 };
                return if allow_missing { Ok(object) } else { Err(EditError::Missing(object)) };
            };
            changeable(view, &object)?;
            let Object::Namespace { subsystem, nsid } = &object else {
                return Err(EditError::Missing(object));
            };
            let subsystems = view.desired.config.subsystems.iter_mut();
            for found in subsystems.filter(|found| found.name == *subsystem) {
                found.namespaces.retain(|namespace| namespace.nsid != *nsid);
            }
            view.made.objects.remove(&object);
            Ok(object)
        };
        let edited = self.change(plain(), work).await.map_err(|error| refused(error, name))?;
        Ok(changed((), &edited.object))
    }

    pub(super) fn opi_get_namespace(&self, name: &str) -> Result<Response<NvmeNamespace>, Status> {
        let (subsystem, id) = name::parse_child("name", name, name::NAMESPACES)?;
        let view = self.manager.view();
        let object = name::namespace_with(&view, &subsystem, &id).ok_or_else(|| missing(name))?;
        answer(&view, &object, name)
    }

    pub(super) fn opi_list_namespaces(
        &self,
        request: &ListNvmeNamespacesRequest,
    ) -> Result<Response<ListNvmeNamespacesResponse>, Status> {
        let parent = name::parse_parent(&request.parent)?;
        let view = self.manager.view();
        let config = &view.desired.config;
        if let Some(parent) = parent.as_ref().filter(|parent| config.subsystem(parent).is_none()) {
            return Err(missing(&name::subsystem(parent)));
        }
        let subsystems = config.subsystems.iter();
        let found = subsystems
            .filter(|subsystem| parent.as_ref().is_none_or(|parent| subsystem.name == *parent))
            .flat_map(|subsystem| {
                let name = &subsystem.name;
                subsystem.namespaces.iter().map(move |namespace| (name, namespace.nsid))
            })
            .filter_map(|(subsystem, nsid)| {
                let object = Object::Namespace { subsystem: subsystem.clone(), nsid };
                Some((format!("{subsystem}/{nsid:03}"), shown(&view, &object)?))
            });
        let (nvme_namespaces, next_page_token) =
            page::page(found.collect(), request.page_size, &request.page_token)?;
        Ok(Response::new(ListNvmeNamespacesResponse { nvme_namespaces, next_page_token }))
    }

    pub(super) async fn opi_namespace_stats(&self, name: &str) -> Result<VolumeStats, Status> {
        let (subsystem, id) = name::parse_child("name", name, name::NAMESPACES)?;
        let object = name::namespace_with(&self.manager.view(), &subsystem, &id);
        stats::of(self, object.ok_or_else(|| missing(name))?).await
    }
}

/// The NSID that a request wants, by its field or by an identifier that consists of digits: other namespaces have their
/// NSID as identifier, and one that said another number could not be told from them.
fn nsid(id: &str, host_nsid: i32) -> Result<Option<u32>, Status> {
    let wanted = match u32::try_from(host_nsid) {
        Ok(0) => None,
        Ok(nsid) => Some(nsid),
        Err(_) => {
            let text = "is negative; write 1 to 256, or 0 for the lowest that is free";
            return Err(invalid(format!("{SPEC}.host_nsid"), text));
        }
    };
    let wrong = |text: &str| Err(invalid(format!("{MESSAGE}_id"), format!("\"{id}\" {text}")));
    if id.is_empty() {
        return Ok(wanted);
    }
    if !name::is_id(id) {
        return wrong(
            "is not an identifier; write 1 to 63 letters, digits, '-', '_' or '.', a letter or \
             digit first",
        );
    }
    if !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(wanted);
    }
    let number: Option<u32> = id.parse().ok().filter(|number: &u32| number.to_string() == id);
    match (number, wanted) {
        (Some(number), None) => Ok(Some(number)),
        (Some(number), Some(nsid)) if number == nsid => Ok(wanted),
        (Some(_) | None, _) => wrong("is of digits alone and not its NSID; write something else"),
    }
}

fn create(view: &mut View, new: New) -> Result<Object, EditError> {
    let New { subsystem, id, nsid, volume } = new;
    let parent = || Object::Subsystem(subsystem.clone());
    let object = |nsid| Object::Namespace { subsystem: subsystem.clone(), nsid };
    let Some(found) = view.desired.config.subsystem(&subsystem) else {
        return Err(EditError::Missing(parent()));
    };
    let free = || (1..).find(|nsid| found.namespaces.iter().all(|n| n.nsid != *nsid));
    let bdev = referred(view, &volume);
    if let Some(there) = name::namespace_with(view, &subsystem, &id) {
        let same = found
            .namespaces
            .iter()
            .any(|n| object(n.nsid) == there && Some(&n.bdev) == bdev.as_ref())
            && nsid.is_none_or(|nsid| object(nsid) == there);
        return if same { Ok(there) } else { Err(EditError::Exists(there)) };
    }
    let made = object(nsid.or_else(free).unwrap_or(u32::MAX));
    let Object::Namespace { nsid, .. } = made else { return Err(EditError::Missing(parent())) };
    let Some(bdev) = bdev else { return Err(no_volume(made, &volume)) };
    if found.namespaces.iter().any(|namespace| namespace.nsid == nsid) {
        return Err(EditError::Exists(made));
    }
    let limits = config::Limits::default();
    let added = config::Namespace { nsid, bdev, uuid: None, limits };
    for found in view.desired.config.subsystems.iter_mut().filter(|s| s.name == subsystem) {
        found.namespaces.push(added.clone());
    }
    view.made.objects.insert(made.clone(), now_ms());
    if !id.is_empty() && id != nsid.to_string() {
        view.made.ids.insert(made.clone(), id);
    }
    Ok(made)
}

fn update(
    view: &mut View,
    object: Object,
    spec: &NvmeNamespaceSpec,
    mask: &[&str],
) -> Result<Object, EditError> {
    let Object::Namespace { subsystem, nsid } = &object else {
        return Err(EditError::Missing(object));
    };
    let namespaces = view.desired.config.subsystem(subsystem).map(|s| s.namespaces.as_slice());
    let now = namespaces.unwrap_or_default().iter().find(|namespace| namespace.nsid == *nsid);
    let Some(now) = now else { return Err(EditError::Missing(object)) };
    let in_the_way = |what: &str| EditError::InTheWay {
        object: object.clone(),
        reason: format!("{what} cannot change: delete the namespace and create another one"),
    };
    // 0 leaves the choice, which was made.
    let other = spec.host_nsid != 0 && i64::from(spec.host_nsid) != i64::from(*nsid);
    if mask.contains(&"host_nsid") && other {
        return Err(in_the_way("its NSID"));
    }
    if mask.contains(&"volume_name_ref") {
        match referred(view, &spec.volume_name_ref) {
            None => return Err(no_volume(object, &spec.volume_name_ref)),
            Some(bdev) if bdev != now.bdev => return Err(in_the_way("its volume")),
            Some(_) => {}
        }
    }
    Ok(object)
}

fn no_volume(object: Object, reference: &str) -> EditError {
    let wrong = format!("there is no volume \"{reference}\"");
    let right = "create it first, or write another one's name";
    EditError::Invalid { object, mistakes: vec![Mistake::new("bdev", wrong, right)] }
}

fn refused(error: EditError, own: &str) -> Status {
    super::error::edit(error, own, |key| match key {
        "nsid" => format!("{SPEC}.host_nsid"),
        "bdev" => format!("{SPEC}.volume_name_ref"),
        key => format!("{SPEC}.{key}"),
    })
}

fn answer(view: &View, object: &Object, own: &str) -> Result<Response<NvmeNamespace>, Status> {
    let namespace = shown(view, object).ok_or_else(|| missing(own))?;
    Ok(changed(namespace, object))
}

fn shown(view: &View, object: &Object) -> Option<NvmeNamespace> {
    let Object::Namespace { subsystem, nsid } = object else { return None };
    let namespace = v1_namespace::shown(view, object)?;
    let oper_state = match view.standing(object) {
        Standing::Ready => OperState::Online,
        Standing::Reconciling | Standing::Failed(_) => OperState::Offline,
    };
    Some(NvmeNamespace {
        name: name::namespace(subsystem, &name::namespace_id(view, subsystem, *nsid)),
        spec: Some(NvmeNamespaceSpec {
            host_nsid: i32::try_from(*nsid).unwrap_or(i32::MAX),
            uuid: namespace.uuid,
            volume_name_ref: reference(view, &namespace.volume),
            ..NvmeNamespaceSpec::default()
        }),
        status: Some(NvmeNamespaceStatus {
            state: State::Enabled.into(),
            oper_state: oper_state.into(),
        }),
    })
}

/// The name of a volume by its kind; a drive's, of which OPI has no kind here, as it is.
fn reference(view: &View, name: &str) -> String {
    let object: Option<Object> = name.parse().ok();
    let volume = object.and_then(|object| v1_volume::shown(view, &object));
    let collection = match volume.and_then(|volume| volume.driver) {
        Some(volume::Driver::Null(_)) => super::null::NULL.collection,
        Some(volume::Driver::Malloc(_)) => super::malloc::MALLOC.collection,
        Some(volume::Driver::File(_)) => super::aio::AIO.collection,
        Some(volume::Driver::Nvme(_)) | None => return name.to_owned(),
    };
    format!("{collection}/{}", name.split_once('/').map_or("", |(_, id)| id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_of_digits_is_the_nsid() {
        for (id, host_nsid, wanted) in [
            ("", 0, None),
            ("", 3, Some(3)),
            ("disk", 0, None),
            ("disk", 3, Some(3)),
            ("3", 0, Some(3)),
            ("3", 3, Some(3)),
        ] {
            assert_eq!(nsid(id, host_nsid).unwrap(), wanted, "{id} {host_nsid}");
        }
        for (id, host_nsid, field) in [
            ("", -1, "nvme_namespace.spec.host_nsid"),
            ("3", 4, "nvme_namespace_id"),
            ("03", 3, "nvme_namespace_id"),
            ("99999999999", 0, "nvme_namespace_id"),
            ("a/b", 0, "nvme_namespace_id"),
        ] {
            let status = nsid(id, host_nsid).unwrap_err();
            assert!(status.message().starts_with(field), "{id} {host_nsid}: {status:?}");
        }
    }
}
