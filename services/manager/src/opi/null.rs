//! Volumes that keep nothing.

use super::mask::Fields;
use super::volume::{Content, Family, Kind};
use crate::grpc::Api;
use tonic::{Request, Response, Status};
use vireo_api::opi::null_volume_service_server::NullVolumeService;
use vireo_api::opi::{
    CreateNullVolumeRequest, DeleteNullVolumeRequest, GetNullVolumeRequest, ListNullVolumesRequest,
    ListNullVolumesResponse, NullVolume, StatsNullVolumeRequest, StatsNullVolumeResponse,
    UpdateNullVolumeRequest,
};

/// How they differ from the others.
pub(super) static NULL: Family = Family {
    collection: "nullVolumes",
    message: "null_volume",
    fields: Fields { below: "", known: &["block_size", "blocks_count", "uuid"] },
    kind: Kind::Null,
};

impl From<NullVolume> for Content {
    fn from(volume: NullVolume) -> Self {
        Self {
            name: volume.name,
            block_size: volume.block_size,
            blocks_count: volume.blocks_count,
            ..Self::default()
        }
    }
}

impl From<Content> for NullVolume {
    fn from(content: Content) -> Self {
        Self {
            name: content.name,
            block_size: content.block_size,
            blocks_count: content.blocks_count,
            uuid: String::new(),
        }
    }
}

#[tonic::async_trait]
impl NullVolumeService for Api {
    async fn create_null_volume(
        &self,
        request: Request<CreateNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        let request = request.into_inner();
        let wanted = request.null_volume.map(Content::from);
        self.opi_create_volume(&NULL, request.null_volume_id, wanted).await
    }

    async fn delete_null_volume(
        &self,
        request: Request<DeleteNullVolumeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.opi_delete_volume(&NULL, &request.name, request.allow_missing).await
    }

    async fn update_null_volume(
        &self,
        request: Request<UpdateNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        let request = request.into_inner();
        let wanted = request.null_volume.map(Content::from);
        let mask = request.update_mask.as_ref();
        self.opi_update_volume(&NULL, wanted, mask, request.allow_missing).await
    }

    async fn list_null_volumes(
        &self,
        request: Request<ListNullVolumesRequest>,
    ) -> Result<Response<ListNullVolumesResponse>, Status> {
        let request = request.into_inner();
        let (null_volumes, next_page_token) =
            self.opi_list_volumes(&NULL, request.page_size, &request.page_token).await?;
        Ok(Response::new(ListNullVolumesResponse { null_volumes, next_page_token }))
    }

    async fn get_null_volume(
        &self,
        request: Request<GetNullVolumeRequest>,
    ) -> Result<Response<NullVolume>, Status> {
        self.opi_get_volume(&NULL, &request.into_inner().name).await
    }

    async fn stats_null_volume(
        &self,
        request: Request<StatsNullVolumeRequest>,
    ) -> Result<Response<StatsNullVolumeResponse>, Status> {
        let stats = self.opi_volume_stats(&NULL, &request.into_inner().name).await?;
        Ok(Response::new(StatsNullVolumeResponse { stats: Some(stats) }))
    }
}
