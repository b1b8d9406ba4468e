//! Names that a namespace brings along where it is made anew: the UUID by which hosts know it, and what clients of the OPI
//! API call it.

use super::error;
use crate::manager::edit::EditError;
use crate::object::Object;
use crate::opi::name;
use crate::view::View;
use service::config::{Mistake, Uuid, parse_uuid};
use tonic::Status;
use vireo_api::v1::Namespace;

/// The names that a request gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    uuid: Option<Uuid>,
    opi_id: String,
}

impl Names {
    /// Reads them.
    pub(super) fn parse(wanted: &Namespace) -> Result<Self, Status> {
        let uuid = match wanted.uuid.as_str() {
            "" => None,
            text => Some(parse_uuid(text).ok_or_else(|| {
                let text = format!(
                    "\"{text}\" is not a UUID; write 32 digits and small letters a to f as in \
                     123e4567-e89b-42d3-a456-426614174000, or nothing for a new one"
                );
                error::invalid("namespace.uuid", text)
            })?),
        };
        let opi_id = wanted.opi_id.clone();
        if !opi_id.is_empty() && !name::is_id(&opi_id) {
            let text = format!(
                "\"{opi_id}\" is not an identifier; write 1 to 63 letters, digits, '-', '_' or '.', \
                 a letter or digit first"
            );
            return Err(error::invalid("namespace.opi_id", text));
        }
        Ok(Self { uuid, opi_id })
    }

    /// Gives them to the namespace `object`, which `view` has already.
    pub(super) fn give(self, view: &mut View, object: &Object) -> Result<(), EditError> {
        let Object::Namespace { subsystem: name, nsid } = object else { return Ok(()) };
        let wrong = |key: &str, wrong: String, right: &str| EditError::Invalid {
            object: object.clone(),
            mistakes: vec![Mistake::new(key, wrong, right)],
        };
        if let Some(uuid) = self.uuid {
            let (config, identities) = (&view.desired.config, &mut view.desired.identities);
            for subsystem in &config.subsystems {
                for namespace in &subsystem.namespaces {
                    if subsystem.name == *name && namespace.nsid == *nsid {
                        identities.set_uuid(subsystem, namespace, uuid);
                    } else if identities.uuid(subsystem, namespace) == Some(uuid) {
                        let text = format!(
                            "is that of namespace {} of {}",
                            namespace.nsid, subsystem.name
                        );
                        return Err(wrong("uuid", text, "write another one, or nothing"));
                    }
                }
            }
        }
        let id = self.opi_id;
        if id.is_empty() || id == nsid.to_string() {
            return Ok(());
        }
        if id.bytes().all(|byte| byte.is_ascii_digit()) {
            let text = format!("\"{id}\" is of digits alone and not its NSID");
            return Err(wrong("opi_id", text, "write something else"));
        }
        if name::namespace_with(view, name, &id).is_some() {
            let text = format!("\"{id}\" is that of another namespace of {name}");
            return Err(wrong("opi_id", text, "write another one, or nothing"));
        }
        view.made.ids.insert(object.clone(), id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made::Made;
    use crate::reconcile::Progress;
    use crate::sample;

    const UUID: &str = "123e4567-e89b-42d3-a456-426614174000";

    fn names(uuid: &str, opi_id: &str) -> Result<Names, Status> {
        let (uuid, opi_id) = (uuid.to_owned(), opi_id.to_owned());
        Names::parse(&Namespace { uuid, opi_id, ..Namespace::default() })
    }

    fn view() -> View {
        View {
            desired: sample::desired(sample::config(&[])),
            made: Made::default(),
            generation: 1,
            progress: Progress::default(),
        }
    }

    fn uuid_of(view: &View, nsid: u32) -> Option<Uuid> {
        let subsystem = view.desired.config.subsystem("s0")?;
        let namespace = subsystem.namespaces.iter().find(|n| n.nsid == nsid)?;
        view.desired.identities.uuid(subsystem, namespace)
    }

    #[test]
    fn a_namespace_takes_its_names_along() {
        let mut view = view();
        let object: Object = "subsystems/s0/namespaces/7".parse().unwrap();
        names(UUID, "disk").unwrap().give(&mut view, &object).unwrap();
        assert_eq!(uuid_of(&view, 7).unwrap().to_string(), UUID);
        assert_eq!(view.made.ids[&object], "disk");
        let before = view.made.ids.clone();
        names("", "7").unwrap().give(&mut view, &object).unwrap();
        assert_eq!(view.made.ids, before, "an NSID is no name of its own");
    }

    #[test]
    fn names_of_others_are_refused_by_field() {
        let object: Object = "subsystems/s0/namespaces/7".parse().unwrap();
        let other: Object = "subsystems/s0/namespaces/1".parse().unwrap();
        let mut view = view();
        view.made.ids.insert(other, "disk".into());
        let taken = uuid_of(&view, 1).unwrap().to_string();
        let cases = [("uuid", taken.as_str(), ""), ("opi_id", "", "disk"), ("opi_id", "", "8")];
        for (key, uuid, id) in cases {
            let given = names(uuid, id).unwrap();
            match given.give(&mut view.clone(), &object).unwrap_err() {
                EditError::Invalid { mistakes, .. } => assert_eq!(mistakes[0].key, key),
                other => panic!("{other:?}"),
            }
        }
        let nothing = "00000000-0000-0000-0000-000000000000";
        for (uuid, id) in [("x", ""), (nothing, ""), ("", "a/b"), ("", "-a")] {
            let status = names(uuid, id).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{uuid} {id}");
        }
    }
}
