//! Volumes in memory.

use super::mask::Fields;
use super::volume::{Content, Family, Kind};
use crate::grpc::Api;
use tonic::{Request, Response, Status};
use vireo_api::opi::malloc_volume_service_server::MallocVolumeService;
use vireo_api::opi::{
    CreateMallocVolumeRequest, DeleteMallocVolumeRequest, GetMallocVolumeRequest,
    ListMallocVolumesRequest, ListMallocVolumesResponse, MallocVolume, StatsMallocVolumeRequest,
    StatsMallocVolumeResponse, UpdateMallocVolumeRequest,
};

/// How they differ from the others.
pub(super) static MALLOC: Family = Family {
    collection: "mallocVolumes",
    message: "malloc_volume",
    fields: Fields { below: "", known: &["block_size", "blocks_count", "metadata_size", "uuid"] },
    kind: Kind::Malloc,
};

impl From<MallocVolume> for Content {
    fn from(volume: MallocVolume) -> Self {
        Self {
            name: volume.name,
            block_size: volume.block_size,
            blocks_count: volume.blocks_count,
            metadata_size: volume.metadata_size,
            ..Self::default()
        }
    }
}

impl From<Content> for MallocVolume {
    fn from(content: Content) -> Self {
        Self {
            name: content.name,
            block_size: content.block_size,
            blocks_count: content.blocks_count,
            metadata_size: content.metadata_size,
            uuid: String::new(),
        }
    }
}

#[tonic::async_trait]
impl MallocVolumeService for Api {
    async fn create_malloc_volume(
        &self,
        request: Request<CreateMallocVolumeRequest>,
    ) -> Result<Response<MallocVolume>, Status> {
        let request = request.into_inner();
        let wanted = request.malloc_volume.map(Content::from);
        self.opi_create_volume(&MALLOC, request.malloc_volume_id, wanted).await
    }

    async fn delete_malloc_volume(
        &self,
        request: Request<DeleteMallocVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.opi_delete_volume(&MALLOC, &request.name, request.allow_missing).await
    }

    async fn update_malloc_volume(
        &self,
        request: Request<UpdateMallocVolumeRequest>,
    ) -> Result<Response<MallocVolume>, Status> {
        let request = request.into_inner();
        let wanted = request.malloc_volume.map(Content::from);
        let mask = request.update_mask.as_ref();
        self.opi_update_volume(&MALLOC, wanted, mask, request.allow_missing).await
    }

    async fn list_malloc_volumes(
        &self,
        request: Request<ListMallocVolumesRequest>,
    ) -> Result<Response<ListMallocVolumesResponse>, Status> {
        let request = request.into_inner();
        let (malloc_volumes, next_page_token) =
            self.opi_list_volumes(&MALLOC, request.page_size, &request.page_token).await?;
        Ok(Response::new(ListMallocVolumesResponse { malloc_volumes, next_page_token }))
    }

    async fn get_malloc_volume(
        &self,
        request: Request<GetMallocVolumeRequest>,
    ) -> Result<Response<MallocVolume>, Status> {
        self.opi_get_volume(&MALLOC, &request.into_inner().name).await
    }

    async fn stats_malloc_volume(
        &self,
        request: Request<StatsMallocVolumeRequest>,
    ) -> Result<Response<StatsMallocVolumeResponse>, Status> {
        let stats = self.opi_volume_stats(&MALLOC, &request.into_inner().name).await?;
        Ok(Response::new(StatsMallocVolumeResponse { stats: Some(stats) }))
    }
}
