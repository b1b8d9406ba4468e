//! What all requests to delete have in common.

use super::request::{changeable, compare_etag};
use super::{Api, audited};
use crate::manager::edit::{Call, EditError};
use crate::object::Object;
use crate::view::View;
use tonic::{Response, Status};

/// What is to be deleted.
pub(super) struct Deletion {
    /// It.
    pub object: Object,
    /// Only if this is its etag; empty for any.
    pub etag: String,
    /// That it is not there is a success.
    pub allow_missing: bool,
}

impl Api {
    /// Deletes an object of the API. `etag` is that of one that is there; `remove` takes it out of what is wanted, or says
    /// what stands in the way.
    pub(super) async fn delete(
        &self,
        call: Call,
        deletion: Deletion,
        etag: fn(&View, &Object) -> Option<String>,
        remove: impl FnOnce(&mut View, &Object) -> Result<(), EditError> + Send + 'static,
    ) -> Result<Response<()>, Status> {
        let Deletion { object, etag: wanted, allow_missing } = deletion;
        let answer = audited((), &object);
        let work = move |view: &mut View| {
            if allow_missing && !object.is_in(&view.desired.config) {
                return Ok(object);
            }
            changeable(view, &object)?;
            let now = etag(view, &object).ok_or(EditError::Missing(object.clone()))?;
            compare_etag(&object, &wanted, &now)?;
            remove(view, &object)?;
            view.made.objects.remove(&object);
            Ok(object)
        };
        self.edit(call, work).await?;
        Ok(answer)
    }
}
