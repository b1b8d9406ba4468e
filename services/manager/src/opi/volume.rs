//! What the three kinds of volume have in common: they are bdevs, and differ in the driver.

use super::{changed, mask, name, plain, stats};
use crate::grpc::error::{invalid, missing};
use crate::grpc::request::changeable;
use crate::grpc::{Api, page, volume as v1_volume};
use crate::manager::edit::{EditError, now_ms};
use crate::object::Object;
use crate::view::View;
use prost_types::FieldMask;
use service::config::Bdev;
use tonic::{Response, Status};
use vireo_api::opi::VolumeStats;
use vireo_api::v1::{FileVolume, MallocVolume, NullVolume, Volume, volume};

/// Bytes of a block where a file's volume does not say.
const DEFAULT_BLOCK: u32 = 512;

/// A kind of volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// Where its volumes are: `nullVolumes`.
    pub(super) collection: &'static str,
    /// The field of requests that holds one: `null_volume`.
    pub(super) message: &'static str,
    /// What a caller can name in a mask.
    pub(super) fields: mask::Fields,
    /// Whose it is.
    pub(super) kind: Kind,
}

/// Where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nowhere.
    Null,
    /// In memory.
    Malloc,
    /// In a file.
    Aio,
}

/// What a volume's message says, of whatever kind it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) name: String,
    pub(super) block_size: i64,
    pub(super) blocks_count: i64,
    pub(super) metadata_size: i64,
    pub(super) filename: String,
}

impl Family {
    fn name(&self, id: &str) -> String {
        format!("{}/{id}", self.collection)
    }

    /// The field of a request that stands for a key of the bdev's configuration.
    fn field(&self, key: &str) -> String {
        match key {
            "name" => format!("{}_id", self.message),
            "size" => format!("{}.blocks_count", self.message),
            "path" => format!("{}.filename", self.message),
            key => format!("{}.{key}", self.message),
        }
    }

    fn wrong(&self, field: &str, text: &str) -> Status {
        invalid(format!("{}.{field}", self.message), text)
    }

    fn has(&self, volume: &Volume) -> bool {
        match volume.driver {
            Some(volume::Driver::Null(_)) => self.kind == Kind::Null,
            Some(volume::Driver::Malloc(_)) => self.kind == Kind::Malloc,
            Some(volume::Driver::File(_)) => self.kind == Kind::Aio,
            Some(volume::Driver::Nvme(_)) | None => false,
        }
    }

    /// The volume, if it is there and of this kind.
    fn find(&self, view: &View, object: &Object) -> Option<Volume> {
        v1_volume::shown(view, object).filter(|volume| self.has(volume))
    }

    fn edit(&self, error: EditError, id: &str) -> Status {
        super::error::edit(error, &self.name(id), |key| self.field(key))
    }

    /// The bdev that a new volume is to be, but for its backend.
    fn bdev(&self, id: &str, content: &Content) -> Result<Bdev, Status> {
        let driver = match self.kind {
            Kind::Null => volume::Driver::Null(NullVolume::default()),
            Kind::Malloc => volume::Driver::Malloc(MallocVolume {}),
            Kind::Aio => {
                let path = content.filename.clone();
                volume::Driver::File(FileVolume { path, ..FileVolume::default() })
            }
        };
        let volume = Volume { driver: Some(driver), ..Volume::default() };
        v1_volume::bdev(id, &self.merged(volume, content)?)
    }

    /// `volume` with size, block size and path as `content` says.
    fn merged(&self, mut volume: Volume, content: &Content) -> Result<Volume, Status> {
        if content.metadata_size != 0 {
            return Err(self.wrong("metadata_size", "there is no metadata here; write 0"));
        }
        volume.block_size = match (content.block_size, self.kind) {
            (0, Kind::Aio) => DEFAULT_BLOCK,
            (0, Kind::Null | Kind::Malloc) => {
                return Err(self.wrong("block_size", "is missing; write 512 or 4096"));
            }
            (size, _) => u32::try_from(size)
                .map_err(|_| self.wrong("block_size", "is not offered; write 512 or 4096"))?,
        };
        if content.blocks_count == 0 && self.kind != Kind::Aio {
            return Err(self.wrong("blocks_count", "is missing; write how many blocks it has"));
        }
        let blocks = u64::try_from(content.blocks_count).ok();
        let size = blocks.and_then(|blocks| blocks.checked_mul(volume.block_size.into()));
        volume.size_bytes = size
            .ok_or_else(|| self.wrong("blocks_count", "is out of range; write a smaller number"))?;
        if let Some(volume::Driver::File(file)) = &mut volume.driver {
            file.path.clone_from(&content.filename);
        }
        Ok(volume)
    }

    /// What the volume says, with its size as `bytes`.
    fn content(&self, volume: Volume, bytes: u64) -> Content {
        let block = u64::from(volume.block_size).max(1);
        let id = volume.name.split_once('/').map_or("", |(_, id)| id);
        Content {
            name: self.name(id),
            block_size: volume.block_size.into(),
            blocks_count: i64::try_from(bytes / block).unwrap_or(i64::MAX),
            metadata_size: 0,
            filename: match volume.driver {
                Some(volume::Driver::File(file)) => file.path,
                _ => String::new(),
            },
        }
    }

    /// `now` with the fields of `mask` as wanted.
    fn with(now: &mut Content, wanted: &Content, mask: &[&str]) {
        for field in mask {
            match *field {
                "block_size" => now.block_size = wanted.block_size,
                "blocks_count" => now.blocks_count = wanted.blocks_count,
                "metadata_size" => now.metadata_size = wanted.metadata_size,
                "filename" => now.filename.clone_from(&wanted.filename),
                // A UUID, which is not taken.
                _ => {}
            }
        }
    }
}

impl Api {
    pub(super) async fn opi_create_volume<M: From<Content>>(
        &self,
        family: &'static Family,
        id: String,
        wanted: Option<Content>,
    ) -> Result<Response<M>, Status> {
        let wanted = wanted.ok_or_else(|| invalid(family.message, "is missing"))?;
        let id = name::id_or_new(id)?;
        let mut bdev = family.bdev(&id, &wanted)?;
        let work = move |view: &mut View| {
            let object = Object::Volume(bdev.name.clone());
            let config = &mut view.desired.config;
            if bdev.backend.is_empty() {
                bdev.backend = config.backends.first().map(|b| b.name.clone()).unwrap_or_default();
            }
            match config.bdev(&bdev.name) {
                Some(there) if *there == bdev => return Ok(object),
                Some(_) => return Err(EditError::Exists(object)),
                None => config.bdevs.push(bdev),
            }
            view.made.objects.insert(object.clone(), now_ms());
            Ok(object)
        };
        let edited = self.change(plain(), work).await;
        let edited = edited.map_err(|error| family.edit(error, &id))?;
        self.opi_volume_answer(family, &edited.view, &edited.object).await
    }

    pub(super) async fn opi_update_volume<M: From<Content>>(
        &self,
        family: &'static Family,
        wanted: Option<Content>,
        mask: Option<&FieldMask>,
        allow_missing: bool,
    ) -> Result<Response<M>, Status> {
        let wanted = wanted.ok_or_else(|| invalid(family.message, "is missing"))?;
        let id = name::parse_volume(
            &format!("{}.name", family.message),
            &wanted.name,
            family.collection,
        )?;
        let mask = family.fields.named(mask, |field| match field {
            "block_size" => wanted.block_size != 0,
            "blocks_count" => wanted.blocks_count != 0,
            "metadata_size" => wanted.metadata_size != 0,
            "filename" => !wanted.filename.is_empty(),
            _ => false,
        })?;
        let object = Object::Volume(id.clone());
        let Some(now) = family.find(&self.manager.view(), &object) else {
            if allow_missing {
                return self.opi_create_volume(family, id, Some(wanted)).await;
            }
            return Err(missing(&family.name(&id)));
        };
        // What is wrong with the request by itself is said by its fields.
        let size = now.size_bytes;
        let mut content = family.content(now.clone(), size);
        Family::with(&mut content, &wanted, &mask);
        family.merged(now, &content)?;
        let work = move |view: &mut View| {
            let gone = || EditError::Missing(object.clone());
            let now = family.find(view, &object).ok_or_else(gone)?;
            let size = now.size_bytes;
            let mut content = family.content(now.clone(), size);
            Family::with(&mut content, &wanted, &mask);
            let Object::Volume(name) = &object else { return Err(gone()) };
            let after = family.merged(now, &content).and_then(|v| v1_volume::bdev(name, &v));
            let after = after.map_err(|status| {
                let reason = status.message().to_owned();
                EditError::InTheWay { object: object.clone(), reason }
            })?;
            if view.desired.config.bdev(name) != Some(&after) {
                changeable(view, &object)?;
            }
            for old in view.desired.config.bdevs.iter_mut().filter(|old| old.name == *name) {
                *old = after.clone();
            }
            Ok(object)
        };
        let edited = self.change(plain(), work).await;
        let edited = edited.map_err(|error| family.edit(error, &id))?;
        self.opi_volume_answer(family, &edited.view, &edited.object).await
    }

    pub(super) async fn opi_delete_volume(
        &self,
        family: &'static Family,
        name: &str,
        allow_missing: bool,
    ) -> Result<Response<()>, Status> {
        let id = name::parse_volume("name", name, family.collection)?;
        let object = Object::Volume(id.clone());
        let deleted = object.clone();
        let work = move |view: &mut View| {
            let Some(now) = family.find(view, &object) else {
                return if allow_missing { Ok(object) } else { Err(EditError::Missing(object)) };
            };
            changeable(view, &object)?;
            if let Some(namespace) = now.namespaces.first() {
                let reason = format!("{} is on it: delete that first", of_opi(view, namespace));
                return Err(EditError::InTheWay { object, reason });
            }
            let bdevs = &mut view.desired.config.bdevs;
            bdevs.retain(|bdev| Object::Volume(bdev.name.clone()) != object);
            view.made.objects.remove(&object);
            Ok(object)
        };
        let edited = self.change(plain(), work).await;
        edited.map_err(|error| family.edit(error, &id))?;
        Ok(changed((), &deleted))
    }

    pub(super) async fn opi_get_volume<M: From<Content>>(
        &self,
        family: &'static Family,
        name: &str,
    ) -> Result<Response<M>, Status> {
        let object = Object::Volume(name::parse_volume("name", name, family.collection)?);
        self.opi_volume_answer(family, &self.manager.view(), &object).await
    }

    pub(super) async fn opi_list_volumes<M: From<Content>>(
        &self,
        family: &'static Family,
        page_size: i32,
        page_token: &str,
    ) -> Result<(Vec<M>, String), Status> {
        let view = self.manager.view();
        let names = view.desired.config.bdevs.iter().map(|bdev| bdev.name.clone());
        let volumes = names.filter_map(|name| {
            let volume = family.find(&view, &Object::Volume(name.clone()))?;
            Some((name, volume))
        });
        let (mut volumes, next) = page::page(volumes.collect(), page_size, page_token)?;
        self.fill_capacities(&mut volumes).await;
        Ok((volumes.into_iter().map(|volume| told(family, volume)).collect(), next))
    }

    pub(super) async fn opi_volume_stats(
        &self,
        family: &'static Family,
        name: &str,
    ) -> Result<VolumeStats, Status> {
        let id = name::parse_volume("name", name, family.collection)?;
        let object = Object::Volume(id.clone());
        if family.find(&self.manager.view(), &object).is_none() {
            return Err(missing(&family.name(&id)));
        }
        stats::of(self, object).await
    }

    async fn opi_volume_answer<M: From<Content>>(
        &self,
        family: &Family,
        view: &View,
        object: &Object,
    ) -> Result<Response<M>, Status> {
        let volume = family.find(view, object);
        let mut volume = volume.ok_or_else(|| {
            let Object::Volume(id) = object else { return missing(&object.to_string()) };
            missing(&family.name(id))
        })?;
        self.fill_capacities(std::slice::from_mut(&mut volume)).await;
        Ok(changed(told(family, volume), object))
    }
}

/// The volume as a caller sees it: with the size that its backend tells, else the wanted one.
fn told<M: From<Content>>(family: &Family, volume: Volume) -> M {
    let bytes = match volume.capacity_bytes {
        0 => volume.size_bytes,
        capacity => capacity,
    };
    family.content(volume, bytes).into()
}

/// A namespace by OPI's name.
fn of_opi(view: &View, namespace: &str) -> String {
    match namespace.parse() {
        Ok(Object::Namespace { subsystem, nsid }) => {
            name::namespace(&subsystem, &name::namespace_id(view, &subsystem, nsid))
        }
        _ => namespace.to_owned(),
    }
}

/// The bdev's name in a reference to a volume: by the name of its kind, as `volumes/x`, or `x` alone. `None` if there is
/// no such volume of that kind.
pub(super) fn referred(view: &View, reference: &str) -> Option<String> {
    let families = [&super::null::NULL, &super::malloc::MALLOC, &super::aio::AIO];
    let (family, id) = match name::parts(reference).as_slice() {
        [id] | [name::VOLUMES, id] => (None, (*id).to_owned()),
        [collection, id] => {
            let family = families.into_iter().find(|family| family.collection == *collection);
            (Some(family?), (*id).to_owned())
        }
        _ => return None,
    };
    let volume = v1_volume::shown(view, &Object::Volume(id.clone()))?;
    family.is_none_or(|family| family.has(&volume)).then_some(id)
}
