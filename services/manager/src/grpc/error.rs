//! Errors as callers see them: google.rpc.Status with its details.

use crate::manager::edit::EditError;
use crate::object::Object;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use vireo_proto::{ErrorCode, Failure};

/// The domain of all our ErrorInfo.
const DOMAIN: &str = "vireo";

/// Reasons in ErrorInfo: one word each for a program to tell errors of the same code apart.
pub(crate) mod reason {
    pub(crate) const NO_ROLE: &str = "NO_ROLE";
    pub(crate) const OBSERVER: &str = "OBSERVER";
    pub(crate) const INVALID: &str = "INVALID_FIELD";
    pub(crate) const EXISTS: &str = "EXISTS";
    pub(crate) const MISSING: &str = "NOT_FOUND";
    pub(crate) const OF_FILE: &str = "OF_CONFIGURATION_FILE";
    pub(crate) const CHANGED: &str = "ETAG_MISMATCH";
    pub(crate) const IN_THE_WAY: &str = "IN_THE_WAY";
    pub(crate) const UNAVAILABLE: &str = "PROCESS_UNAVAILABLE";
    pub(crate) const TOO_MUCH: &str = "LIMIT";
    pub(crate) const STATE: &str = "STATE_NOT_WRITTEN";
    pub(crate) const FAILED: &str = "PROCESS_REFUSED";
    pub(crate) const INTERNAL: &str = "INTERNAL";
    pub(crate) const NO_CLIENT: &str = "NO_CLIENT";
    pub(crate) const GONE: &str = "CONTROLLER_GONE";
    pub(crate) const FAULTS_OFF: &str = "FAULTS_OFF";
    pub(crate) const RELOAD: &str = "RELOAD_REFUSED";
}

/// An error with its ErrorInfo.
pub(crate) fn refuse(code: Code, reason: &str, text: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, text, details)
}

/// A field of the request is wrong.
pub(crate) fn invalid(field: impl Into<String>, description: impl Into<String>) -> Status {
    invalid_all(vec![(field.into(), description.into())])
}

/// Fields of the request are wrong, each with what is.
pub(crate) fn invalid_all(fields: Vec<(String, String)>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason::INVALID, DOMAIN, HashMap::new());
    let lines: Vec<String> =
        fields.iter().map(|(field, text)| format!("{field}: {text}")).collect();
    for (field, description) in fields {
        details.add_bad_request_violation(field, description);
    }
    Status::with_error_details(Code::InvalidArgument, lines.join("; "), details)
}

/// The resource of this name is not there.
pub(crate) fn missing(name: &str) -> Status {
    refuse(Code::NotFound, reason::MISSING, format!("{name} is not there"))
}

/// What a process or the manager itself refused.
pub(crate) fn failure(failure: &Failure) -> Status {
    let code = match failure.code() {
        ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition => Code::FailedPrecondition,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::ResourceExhausted => Code::ResourceExhausted,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::Unspecified | ErrorCode::Internal | ErrorCode::Unsupported => Code::Internal,
    };
    refuse(code, reason::RELOAD, failure.message())
}

/// Why a change was not made.
pub(crate) fn edit(error: EditError) -> Status {
    let text = error.to_string();
    match error {
        EditError::Invalid { object, mistakes } => {
            let fields = mistakes.iter().map(|mistake| {
                let text = format!("{}; {}", mistake.wrong, mistake.right);
                (field(&object, &mistake.key), text)
            });
            invalid_all(fields.collect())
        }
        EditError::Exists(_) => refuse(Code::AlreadyExists, reason::EXISTS, text),
        EditError::Missing(_) => refuse(Code::NotFound, reason::MISSING, text),
        EditError::OfFile(object) => {
            precondition(reason::OF_FILE, "ORIGIN", &object.to_string(), text)
        }
        EditError::Changed(_) => refuse(Code::Aborted, reason::CHANGED, text),
        EditError::InTheWay { object, .. } => {
            precondition(reason::IN_THE_WAY, "STATE", &object.to_string(), text)
        }
        EditError::OtherRequest => invalid("request_id", text),
        EditError::Unavailable(_) => refuse(Code::Unavailable, reason::UNAVAILABLE, text),
        EditError::TooMuch(_) => refuse(Code::ResourceExhausted, reason::TOO_MUCH, text),
        // A full disk may be emptied, a read-only one be mounted anew: nothing is lost by trying again.
        EditError::Store(error) => {
            refuse(Code::Unavailable, reason::STATE, Failure::internal(&error).message())
        }
        EditError::Failed { object, .. } => {
            precondition(reason::FAILED, "PROCESS", &object.to_string(), text)
        }
        EditError::Internal(_) => refuse(Code::Internal, reason::INTERNAL, text),
    }
}

/// Something stands in the way of the call.
pub(crate) fn precondition(reason: &str, kind: &str, subject: &str, text: String) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.add_precondition_failure_violation(kind, subject, text.as_str());
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

/// The field of a request that stands for a key of the configuration below the object's own.
fn field(object: &Object, key: &str) -> String {
    match (object, key) {
        (Object::Volume(_), "name") => "volume_id".to_owned(),
        (Object::Volume(_), "size") => "volume.size_bytes".to_owned(),
        (Object::Volume(_), "latency") => "volume.null.latency".to_owned(),
        (Object::Volume(_), "path" | "create" | "read_only") => format!("volume.file.{key}"),
        (Object::Volume(_), "target" | "nsid" | "polled") => format!("volume.nvme.{key}"),
        (Object::Volume(_), _) => format!("volume.{key}"),
        (Object::Subsystem(_), "name") => "subsystem_id".to_owned(),
        (Object::Subsystem(_), _) => format!("subsystem.{key}"),
        (Object::Namespace { .. }, "nsid") => "namespace_id".to_owned(),
        (Object::Namespace { .. }, "bdev") => "namespace.volume".to_owned(),
        (Object::Namespace { .. }, _) => format!("namespace.{key}"),
        (Object::Controller(_), "name") => "controller_id".to_owned(),
        (Object::Controller(_), "max_transfer") => "controller.max_transfer_bytes".to_owned(),
        (Object::Controller(_), _) => format!("controller.{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::config::Mistake;

    #[test]
    fn mistakes_are_violations_of_the_requests_fields() {
        let mistakes = vec![Mistake::new("size", "is missing", "add it")];
        let object = Object::Volume("x".into());
        let status = edit(EditError::Invalid { object, mistakes });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "volume.size_bytes: is missing; add it");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "volume.size_bytes");
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason::INVALID, DOMAIN));
    }

    #[test]
    fn every_error_has_its_code_and_reason() {
        let object = || Object::Controller("vm0".into());
        let store = crate::store::StoreError::Locked { path: "/x".into() };
        let cases = [
            (EditError::Exists(object()), Code::AlreadyExists, reason::EXISTS),
            (EditError::Missing(object()), Code::NotFound, reason::MISSING),
            (EditError::OfFile(object()), Code::FailedPrecondition, reason::OF_FILE),
            (EditError::Changed(object()), Code::Aborted, reason::CHANGED),
            (EditError::OtherRequest, Code::InvalidArgument, reason::INVALID),
            (EditError::Unavailable("x".into()), Code::Unavailable, reason::UNAVAILABLE),
            (EditError::TooMuch("x".into()), Code::ResourceExhausted, reason::TOO_MUCH),
            (EditError::Store(store), Code::Unavailable, reason::STATE),
            (EditError::Internal("x".into()), Code::Internal, reason::INTERNAL),
            (
                EditError::InTheWay { object: object(), reason: "x".into() },
                Code::FailedPrecondition,
                reason::IN_THE_WAY,
            ),
            (
                EditError::Failed { object: object(), reason: "x".into() },
                Code::FailedPrecondition,
                reason::FAILED,
            ),
        ];
        for (error, code, reason) in cases {
            let status = edit(error);
            assert_eq!(status.code(), code);
            assert_eq!(status.get_error_details().error_info().unwrap().reason, reason);
        }
    }
}
