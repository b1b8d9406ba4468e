//! Why a change was not made, in the words of a caller of OPI's services.

use super::name;
use crate::grpc::error::{self, invalid_all, precondition, reason, refuse};
use crate::manager::edit::EditError;
use crate::object::Object;
use tonic::{Code, Status};

/// `own` is the name of the resource that was to be changed, `field` gives the field of the request that stands for a key
/// of the configuration below the object's own.
pub(super) fn edit(error: EditError, own: &str, field: impl Fn(&str) -> String) -> Status {
    let name = |object: &Object| match object {
        Object::Subsystem(subsystem) => name::subsystem(subsystem),
        Object::Volume(_) | Object::Namespace { .. } | Object::Controller(_) => own.to_owned(),
    };
    match error {
        EditError::Invalid { mistakes, .. } => {
            let fields = mistakes.iter().map(|mistake| {
                (field(&mistake.key), format!("{}; {}", mistake.wrong, mistake.right))
            });
            invalid_all(fields.collect())
        }
        EditError::Exists(object) => {
            let text = format!("{} is there already", name(&object));
            refuse(Code::AlreadyExists, reason::EXISTS, text)
        }
        EditError::Missing(object) => error::missing(&name(&object)),
        EditError::OfFile(object) => {
            let name = name(&object);
            let text =
                format!("{name} belongs to the configuration file: change it there, and reload");
            precondition(reason::OF_FILE, "ORIGIN", &name, text)
        }
        EditError::InTheWay { object, reason } => {
            let name = name(&object);
            let text = format!("{name}: {reason}");
            precondition(reason::IN_THE_WAY, "STATE", &name, text)
        }
        EditError::Failed { object, reason } => {
            let name = name(&object);
            let text = format!("{name} cannot be served: {reason}");
            precondition(reason::FAILED, "PROCESS", &name, text)
        }
        other @ (EditError::Changed(_)
        | EditError::OtherRequest
        | EditError::Unavailable(_)
        | EditError::TooMuch(_)
        | EditError::Store(_)
        | EditError::Internal(_)) => error::edit(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::config::Mistake;
    use tonic_types::StatusExt;

    fn told(error: EditError) -> Status {
        edit(error, "nullVolumes/x", |key| format!("null_volume.{key}"))
    }

    #[test]
    fn resources_and_fields_have_the_names_of_the_request() {
        let volume = || Object::Volume("x".into());
        let mistakes = vec![Mistake::new("block_size", "1 is not offered", "write 512 or 4096")];
        let status = told(EditError::Invalid { object: volume(), mistakes });
        assert_eq!(status.message(), "null_volume.block_size: 1 is not offered; write 512 or 4096");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "null_volume.block_size");

        let status = told(EditError::Missing(volume()));
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "nullVolumes/x is not there")
        );
        let status = told(EditError::Missing(Object::Subsystem("s".into())));
        assert_eq!(status.message(), "nvmeSubsystems/s is not there");
        for (error, code) in [
            (EditError::Exists(volume()), Code::AlreadyExists),
            (EditError::OfFile(volume()), Code::FailedPrecondition),
            (
                EditError::InTheWay { object: volume(), reason: "r".into() },
                Code::FailedPrecondition,
            ),
            (EditError::Failed { object: volume(), reason: "r".into() }, Code::FailedPrecondition),
        ] {
            let status = told(error);
            assert_eq!(status.code(), code);
            assert!(status.message().starts_with("nullVolumes/x"), "{status:?}");
        }
        assert_eq!(told(EditError::TooMuch("x".into())).code(), Code::ResourceExhausted);
    }
}
