//! Volumes: the block devices.

use super::deletion::Deletion;
use super::request::{absent, call, changeable, common, compare_etag, etag, named};
use super::{Api, audited, error, page, time};
use crate::manager::edit::{EditError, Edited, now_ms};
use crate::object::Object;
use crate::peer::Peer;
use crate::view::View;
use prost_types::FieldMask;
use service::config::{Bdev, Channel, Driver, Kind};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};
use vireo_api::v1::volume_service_server::VolumeService;
use vireo_api::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, FileVolume, GetVolumeRequest, ListVolumesRequest,
    ListVolumesResponse, MallocVolume, NullVolume, NvmeVolume, UpdateVolumeRequest, Volume,
    VolumeChannel, volume,
};
use vireo_proto::handoff::{DescribeBdev, reply, request};

/// How long a backend may take to tell how large a volume is.
const TIMEOUT: Duration = Duration::from_secs(2);
const PATTERN: &str = "volumes/{volume}";
/// What a caller can give.
const FIELDS: [&str; 8] =
    ["null", "malloc", "file", "nvme", "size_bytes", "block_size", "channel", "backend"];

#[tonic::async_trait]
impl VolumeService for Api {
    async fn get_volume(
        &self,
        request: Request<GetVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let object = volume_named(&request.into_inner().name)?;
        let volume = shown(&self.manager.view(), &object);
        let mut volume = volume.ok_or_else(|| error::missing(&object.to_string()))?;
        self.fill_capacities(std::slice::from_mut(&mut volume)).await;
        Ok(Response::new(volume))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let view = self.manager.view();
        let volumes = view.desired.config.bdevs.iter();
        let volumes = volumes.map(|bdev| (bdev.name.clone(), volume(&view, bdev))).collect();
        let (mut volumes, next_page_token) =
            page::page(volumes, request.page_size, &request.page_token)?;
        self.fill_capacities(&mut volumes).await;
        Ok(Response::new(ListVolumesResponse { volumes, next_page_token }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let call = call("CreateVolume", &request, &request.request_id, request.validate_only)?;
        let wanted = request.volume.ok_or_else(|| error::invalid("volume", "is missing"))?;
        let mut bdev = bdev(&request.volume_id, &wanted)?;
        let work = move |view: &mut View| {
            let object = Object::Volume(bdev.name.clone());
            absent(view, &object)?;
            let config = &mut view.desired.config;
            if bdev.backend.is_empty() {
                bdev.backend = config.backends.first().map(|b| b.name.clone()).unwrap_or_default();
            }
            config.bdevs.push(bdev);
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        self.volume_answer(&edited).await
    }

    async fn update_volume(
        &self,
        request: Request<UpdateVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let request = request.into_inner();
        let call = call("UpdateVolume", &request, &request.request_id, request.validate_only)?;
        let wanted = request.volume.ok_or_else(|| error::invalid("volume", "is missing"))?;
        let object = volume_named_in("volume.name", &wanted.name)?;
        let mask = fields(request.update_mask.as_ref(), &wanted)?;
        let work = move |view: &mut View| {
            changeable(view, &object)?;
            let now = shown(view, &object).ok_or(EditError::Missing(object.clone()))?;
            compare_etag(&object, &wanted.etag, &now.etag)?;
            let after = merged(now, &wanted, &mask);
            let Object::Volume(name) = &object else { return Err(EditError::Missing(object)) };
            let bdev = bdev(name, &after)
                .map_err(|status| in_the_way(&object, status.message().to_owned()))?;
            let bdevs = view.desired.config.bdevs.iter_mut();
            for old in bdevs.filter(|old| old.name == *name) {
                *old = bdev.clone();
            }
            Ok(object)
        };
        let edited = self.edit(call, work).await?;
        self.volume_answer(&edited).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let call = call("DeleteVolume", &request, &request.request_id, request.validate_only)?;
        let object = volume_named(&request.name)?;
        let DeleteVolumeRequest { etag, allow_missing, .. } = request;
        let etag_of = |view: &View, object: &Object| shown(view, object).map(|now| now.etag);
        let remove = |view: &mut View, object: &Object| {
            let namespaces = shown(view, object).map(|now| now.namespaces).unwrap_or_default();
            if let Some(namespace) = namespaces.first() {
                let reason = format!("{namespace} is on it: delete that first");
                return Err(in_the_way(object, reason));
            }
            let bdevs = &mut view.desired.config.bdevs;
            bdevs.retain(|bdev| Object::Volume(bdev.name.clone()) != *object);
            Ok(())
        };
        self.delete(call, Deletion { object, etag, allow_missing }, etag_of, remove).await
    }
}

fn in_the_way(object: &Object, reason: String) -> EditError {
    EditError::InTheWay { object: object.clone(), reason }
}

fn volume_named(name: &str) -> Result<Object, Status> {
    volume_named_in("name", name)
}

fn volume_named_in(field: &str, name: &str) -> Result<Object, Status> {
    named(field, name, PATTERN, |object| matches!(object, Object::Volume(_)))
}

impl Api {
    async fn volume_answer(&self, edited: &Edited) -> Result<Response<Volume>, Status> {
        let volume = shown(&edited.view, &edited.object);
        let mut volume = volume.ok_or_else(|| error::missing(&edited.object.to_string()))?;
        self.fill_capacities(std::slice::from_mut(&mut volume)).await;
        Ok(audited(volume, &edited.object))
    }

    /// Asks backends how large volumes are, all at the same time.
    pub(crate) async fn fill_capacities(&self, volumes: &mut [Volume]) {
        let mut asked = JoinSet::new();
        for (index, volume) in volumes.iter().enumerate() {
            let mut backends = self.manager.peers().iter().filter(|p| p.kind == Kind::Backend);
            let backend = backends.find(|peer| peer.name == volume.backend);
            let Some(session) = backend.and_then(Peer::session) else { continue };
            let bdev = volume.name.trim_start_matches("volumes/").to_owned();
            asked.spawn(async move {
                let body = request::Body::DescribeBdev(DescribeBdev { bdev });
                let answer = session.call_within(TIMEOUT, body, &[]).await;
                (index, answer.map(|answer| answer.body))
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok((index, Ok(reply::Body::BdevInfo(info)))) = answer
                && let Some(volume) = volumes.get_mut(index)
            {
                volume.capacity_bytes = info.size_bytes;
            }
        }
    }
}

pub(crate) fn shown(view: &View, object: &Object) -> Option<Volume> {
    let Object::Volume(name) = object else { return None };
    view.desired.config.bdev(name).map(|bdev| volume(view, bdev))
}

/// A bdev as a caller sees it.
fn volume(view: &View, bdev: &Bdev) -> Volume {
    let object = Object::Volume(bdev.name.clone());
    let driver = match &bdev.driver {
        Driver::Null { latency } => {
            volume::Driver::Null(NullVolume { latency: Some(time::duration(*latency)) })
        }
        Driver::Malloc => volume::Driver::Malloc(MallocVolume {}),
        Driver::File { path, create, direct, read_only } => volume::Driver::File(FileVolume {
            path: path.to_string_lossy().into_owned(),
            create: *create,
            buffered: !*direct,
            read_only: *read_only,
        }),
        Driver::Nvme { target, nsid, read_only, polled } => volume::Driver::Nvme(NvmeVolume {
            target: target.clone(),
            nsid: *nsid,
            read_only: *read_only,
            polled: *polled,
        }),
    };
    let channel = match bdev.channel {
        Channel::Lease => VolumeChannel::Lease,
        Channel::Ring => VolumeChannel::Ring,
    };
    let mut volume = Volume {
        name: object.to_string(),
        driver: Some(driver),
        size_bytes: bdev.size.unwrap_or(0),
        block_size: bdev.block_size,
        channel: channel.into(),
        backend: bdev.backend.clone(),
        ..Volume::default()
    };
    volume.etag = etag(&volume);
    let common = common(view, &object);
    (volume.origin, volume.state) = (common.origin, common.state);
    (volume.state_message, volume.create_time) = (common.state_message, common.create_time);
    let subsystems = view.desired.config.subsystems.iter();
    volume.namespaces = subsystems
        .flat_map(|subsystem| subsystem.namespaces.iter().map(move |n| (subsystem, n)))
        .filter(|(_, namespace)| namespace.bdev == bdev.name)
        .map(|(subsystem, namespace)| {
            let (subsystem, nsid) = (subsystem.name.clone(), namespace.nsid);
            Object::Namespace { subsystem, nsid }.to_string()
        })
        .collect();
    volume
}

/// What a caller wants as a bdev. What the configuration can say of it is checked there.
pub(crate) fn bdev(name: &str, wanted: &Volume) -> Result<Bdev, Status> {
    let driver = match &wanted.driver {
        None => {
            return Err(error::invalid(
                "volume.driver",
                "is missing; give null, malloc, file or nvme",
            ));
        }
        Some(volume::Driver::Null(null)) => {
            let latency = match &null.latency {
                None => Duration::ZERO,
                Some(latency) => time::parse(latency).ok_or_else(|| {
                    error::invalid("volume.null.latency", "is no duration; write 0 s to 10 s")
                })?,
            };
            Driver::Null { latency }
        }
        Some(volume::Driver::Malloc(MallocVolume {})) => Driver::Malloc,
        Some(volume::Driver::File(file)) => Driver::File {
            path: file.path.clone().into(),
            create: file.create,
            direct: !file.buffered,
            read_only: file.read_only,
        },
        Some(volume::Driver::Nvme(nvme)) => Driver::Nvme {
            target: nvme.target.clone(),
            nsid: if nvme.nsid == 0 { 1 } else { nvme.nsid },
            read_only: nvme.read_only,
            polled: nvme.polled,
        },
    };
    let channel = match (VolumeChannel::try_from(wanted.channel), &driver) {
        (Ok(VolumeChannel::Lease), _) => Channel::Lease,
        (Ok(VolumeChannel::Ring), _) => Channel::Ring,
        (Ok(VolumeChannel::Unspecified), Driver::File { .. }) => Channel::Ring,
        (
            Ok(VolumeChannel::Unspecified),
            Driver::Null { .. } | Driver::Malloc | Driver::Nvme { .. },
        ) => Channel::Lease,
        (Err(_), _) => return Err(error::invalid("volume.channel", "is not known")),
    };
    Ok(Bdev {
        name: name.to_owned(),
        backend: wanted.backend.clone(),
        size: (wanted.size_bytes != 0).then_some(wanted.size_bytes),
        block_size: match (wanted.block_size, &driver) {
            // A drive has its own.
            (0, Driver::Nvme { .. }) => 0,
            (0, _) => 512,
            (size, _) => size,
        },
        channel,
        driver,
    })
}

/// The fields that a caller wants to change.
fn fields(mask: Option<&FieldMask>, wanted: &Volume) -> Result<Vec<&'static str>, Status> {
    let driver = match &wanted.driver {
        Some(volume::Driver::Null(_)) => Some("null"),
        Some(volume::Driver::Malloc(_)) => Some("malloc"),
        Some(volume::Driver::File(_)) => Some("file"),
        Some(volume::Driver::Nvme(_)) => Some("nvme"),
        None => None,
    };
    let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else {
        let set = FIELDS.into_iter().filter(|field| match *field {
            "size_bytes" => wanted.size_bytes != 0,
            "block_size" => wanted.block_size != 0,
            "channel" => wanted.channel != 0,
            "backend" => !wanted.backend.is_empty(),
            field => driver == Some(field),
        });
        return Ok(set.collect());
    };
    if mask.paths == ["*"] {
        return Ok(FIELDS.to_vec());
    }
    let known = |path: &String| FIELDS.into_iter().find(|field| field == path);
    mask.paths
        .iter()
        .map(|path| {
            known(path).ok_or_else(|| {
                let text = format!("\"{path}\" cannot be given; known: {}", FIELDS.join(", "));
                error::invalid("update_mask", text)
            })
        })
        .collect()
}

/// The volume with the fields of `mask` as wanted.
fn merged(mut now: Volume, wanted: &Volume, mask: &[&str]) -> Volume {
    for field in mask {
        match *field {
            "size_bytes" => now.size_bytes = wanted.size_bytes,
            "block_size" => now.block_size = wanted.block_size,
            "channel" => now.channel = wanted.channel,
            "backend" if wanted.backend.is_empty() => {}
            "backend" => now.backend.clone_from(&wanted.backend),
            // The driver: one of three.
            _ if wanted.driver.is_some() => now.driver.clone_from(&wanted.driver),
            _ => {}
        }
    }
    now
}
