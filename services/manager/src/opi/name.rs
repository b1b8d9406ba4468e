//! Resource names as OPI writes them.

use crate::grpc::error::invalid;
use crate::object::Object;
use crate::view::View;
use service::config::random_uuid;
use tonic::{Code, Status};

/// Where subsystems are.
pub(super) const SUBSYSTEMS: &str = "nvmeSubsystems";
/// Where the controllers of a subsystem are.
pub(super) const CONTROLLERS: &str = "nvmeControllers";
/// Where the namespaces of a subsystem are.
pub(super) const NAMESPACES: &str = "nvmeNamespaces";
/// Where any volume is, whatever its kind.
pub(super) const VOLUMES: &str = "volumes";
/// The parent that stands for all subsystems.
const ALL: &str = "nvmeSubsystems/-";
/// Longest identifier of a namespace: as long as other names are.
const MAX_ID: usize = 63;

/// `nvmeSubsystems/x`.
pub(super) fn subsystem(subsystem: &str) -> String {
    format!("{SUBSYSTEMS}/{subsystem}")
}

/// `nvmeSubsystems/x/nvmeControllers/y`.
pub(super) fn controller(subsystem: &str, controller: &str) -> String {
    format!("{SUBSYSTEMS}/{subsystem}/{CONTROLLERS}/{controller}")
}

/// `nvmeSubsystems/x/nvmeNamespaces/y`.
pub(super) fn namespace(subsystem: &str, id: &str) -> String {
    format!("{SUBSYSTEMS}/{subsystem}/{NAMESPACES}/{id}")
}

/// The identifier of a namespace: the one that it was made with, else its NSID.
pub(super) fn namespace_id(view: &View, subsystem: &str, nsid: u32) -> String {
    let object = Object::Namespace { subsystem: subsystem.to_owned(), nsid };
    view.made.ids.get(&object).cloned().unwrap_or_else(|| nsid.to_string())
}

/// The namespace of a subsystem that has the identifier `id`.
pub(crate) fn namespace_with(view: &View, subsystem: &str, id: &str) -> Option<Object> {
    let namespaces = &view.desired.config.subsystem(subsystem)?.namespaces;
    let mut namespaces = namespaces.iter().map(|namespace| namespace.nsid);
    let nsid = namespaces.find(|nsid| namespace_id(view, subsystem, *nsid) == id)?;
    Some(Object::Namespace { subsystem: subsystem.to_owned(), nsid })
}

/// Reads `nvmeSubsystems/x`, which `field` holds.
pub(super) fn parse_subsystem(field: &str, name: &str) -> Result<String, Status> {
    match parts(name).as_slice() {
        [SUBSYSTEMS, subsystem] => Ok((*subsystem).to_owned()),
        _ => Err(unlike(field, name, &format!("{SUBSYSTEMS}/{{subsystem}}"))),
    }
}

/// Reads a parent; `None` for all subsystems.
pub(super) fn parse_parent(name: &str) -> Result<Option<String>, Status> {
    if name == ALL { Ok(None) } else { parse_subsystem("parent", name).map(Some) }
}

/// Reads `nvmeSubsystems/x/<collection>/y`: subsystem and identifier.
pub(super) fn parse_child(
    field: &str,
    name: &str,
    collection: &str,
) -> Result<(String, String), Status> {
    match parts(name).as_slice() {
        [SUBSYSTEMS, subsystem, of, id] if *of == collection => {
            Ok(((*subsystem).to_owned(), (*id).to_owned()))
        }
        _ => Err(unlike(field, name, &format!("{SUBSYSTEMS}/{{subsystem}}/{collection}/{{id}}"))),
    }
}

/// Reads `<collection>/x` or `volumes/x`.
pub(super) fn parse_volume(field: &str, name: &str, collection: &str) -> Result<String, Status> {
    match parts(name).as_slice() {
        [of, volume] if *of == collection || *of == VOLUMES => Ok((*volume).to_owned()),
        _ => Err(unlike(field, name, &format!("{collection}/{{volume}}"))),
    }
}

/// The parts of a name; none of a name with an empty part.
pub(super) fn parts(name: &str) -> Vec<&str> {
    let parts: Vec<&str> = name.splitn(5, '/').collect();
    if parts.iter().any(|part| part.is_empty()) { Vec::new() } else { parts }
}

/// The identifier of a new resource: the given one, or one that is made up.
pub(super) fn id_or_new(given: String) -> Result<String, Status> {
    if !given.is_empty() {
        return Ok(given);
    }
    let made_up = random_uuid().map(|uuid| uuid.to_string());
    made_up.map_err(|error| {
        let text = format!("make an identifier: {error}");
        crate::grpc::error::refuse(Code::Internal, crate::grpc::error::reason::INTERNAL, text)
    })
}

/// True if `id` can be the identifier of a namespace.
pub(crate) fn is_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    id.len() <= MAX_ID
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(allowed)
}

fn unlike(field: &str, name: &str, pattern: &str) -> Status {
    invalid(field, format!("\"{name}\" is not like {pattern}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::Made;
    use crate::reconcile::Progress;
    use crate::sample;

    #[test]
    fn names_are_read_as_they_are_written() {
        assert_eq!(parse_subsystem("name", &subsystem("s")).unwrap(), "s");
        let child = ("s".to_owned(), "c".to_owned());
        assert_eq!(parse_child("name", &controller("s", "c"), CONTROLLERS).unwrap(), child);
        assert_eq!(parse_child("name", &namespace("s", "c"), NAMESPACES).unwrap(), child);
        for name in ["nullVolumes/v", "volumes/v"] {
            assert_eq!(parse_volume("name", name, "nullVolumes").unwrap(), "v");
        }
        assert_eq!(parse_parent("nvmeSubsystems/-").unwrap(), None);
        assert_eq!(parse_parent("nvmeSubsystems/s").unwrap().as_deref(), Some("s"));
    }

    #[test]
    fn what_is_no_name_is_said_of_its_field() {
        for wrong in ["", "s", "nvmeSubsystems", "nvmeSubsystems/", "/s", "nvmeSubsystems/s/x"] {
            let status = parse_subsystem("parent", wrong).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with("parent: "), "{status:?}");
        }
        for wrong in ["mallocVolumes/v", "v", "nullVolumes/v/w", "nullVolumes//v"] {
            assert!(parse_volume("name", wrong, "nullVolumes").is_err(), "{wrong}");
        }
        for wrong in [namespace("s", "n"), controller("", "c"), controller("s", "c/d")] {
            assert!(parse_child("name", &wrong, CONTROLLERS).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_namespace_is_found_by_the_identifier_it_was_made_with_and_else_by_its_nsid() {
        let mut made = Made::default();
        let object: Object = "subsystems/s0/namespaces/7".parse().unwrap();
        made.ids.insert(object.clone(), "disk".into());
        let view = View {
            desired: sample::desired(sample::config(&[])),
            made,
            generation: 1,
            progress: Progress::default(),
        };
        assert_eq!(namespace_with(&view, "s0", "disk"), Some(object));
        assert_eq!(namespace_with(&view, "s0", "7"), None, "one name for one namespace");
        assert_eq!(namespace_with(&view, "s0", "1"), "subsystems/s0/namespaces/1".parse().ok());
        assert_eq!(namespace_with(&view, "s0", "01"), None);
        assert_eq!(namespace_with(&view, "s1", "disk"), None);
    }

    #[test]
    fn identifiers_are_words() {
        for right in ["a", "7", "opi-5159a89a-e750-11f1-91df-02fc00000001", "A_b.c"] {
            assert!(is_id(right), "{right}");
        }
        for wrong in ["", "-a", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(!is_id(wrong), "{wrong}");
        }
        assert_eq!(id_or_new("x".into()).unwrap(), "x");
        assert!(is_id(&id_or_new(String::new()).unwrap()));
    }
}
