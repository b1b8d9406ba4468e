//! Volumes in files and block devices.

use super::mask::Fields;
use super::volume::{Content, Family, Kind};
use crate::grpc::Api;
use tonic::{Request, Response, Status};
use vireo_api::opi::aio_volume_service_server::AioVolumeService;
use vireo_api::opi::{
    AioVolume, CreateAioVolumeRequest, DeleteAioVolumeRequest, GetAioVolumeRequest,
    ListAioVolumesRequest, ListAioVolumesResponse, StatsAioVolumeRequest, StatsAioVolumeResponse,
    UpdateAioVolumeRequest,
};

/// How they differ from the others.
pub(super) static AIO: Family = Family {
    collection: "aioVolumes",
    message: "aio_volume",
    fields: Fields { below: "", known: &["block_size", "blocks_count", "uuid", "filename"] },
    kind: Kind::Aio,
};

impl From<AioVolume> for Content {
    fn from(volume: AioVolume) -> Self {
        Self {
            name: volume.name,
            block_size: volume.block_size,
            blocks_count: volume.blocks_count,
            filename: volume.filename,
            ..Self::default()
        }
    }
}

impl From<Content> for AioVolume {
    fn from(content: Content) -> Self {
        Self {
            name: content.name,
            block_size: content.block_size,
            blocks_count: content.blocks_count,
            filename: content.filename,
            uuid: String::new(),
        }
    }
}

#[tonic::async_trait]
impl AioVolumeService for Api {
    async fn create_aio_volume(
        &self,
        request: Request<CreateAioVolumeRequest>,
    ) -> Result<Response<AioVolume>, Status> {
        let request = request.into_inner();
        let wanted = request.aio_volume.map(Content::from);
        self.opi_create_volume(&AIO, request.aio_volume_id, wanted).await
    }

    async fn delete_aio_volume(
        &self,
        request: Request<DeleteAioVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.opi_delete_volume(&AIO, &request.name, request.allow_missing).await
    }

    async fn update_aio_volume(
        &self,
        request: Request<UpdateAioVolumeRequest>,
    ) -> Result<Response<AioVolume>, Status> {
        let request = request.into_inner();
        let wanted = request.aio_volume.map(Content::from);
        let mask = request.update_mask.as_ref();
        self.opi_update_volume(&AIO, wanted, mask, request.allow_missing).await
    }

    async fn list_aio_volumes(
        &self,
        request: Request<ListAioVolumesRequest>,
    ) -> Result<Response<ListAioVolumesResponse>, Status> {
        let request = request.into_inner();
        let (aio_volumes, next_page_token) =
            self.opi_list_volumes(&AIO, request.page_size, &request.page_token).await?;
        Ok(Response::new(ListAioVolumesResponse { aio_volumes, next_page_token }))
    }

    async fn get_aio_volume(
        &self,
        request: Request<GetAioVolumeRequest>,
    ) -> Result<Response<AioVolume>, Status> {
        self.opi_get_volume(&AIO, &request.into_inner().name).await
    }

    async fn stats_aio_volume(
        &self,
        request: Request<StatsAioVolumeRequest>,
    ) -> Result<Response<StatsAioVolumeResponse>, Status> {
        let stats = self.opi_volume_stats(&AIO, &request.into_inner().name).await?;
        Ok(Response::new(StatsAioVolumeResponse { stats: Some(stats) }))
    }
}
