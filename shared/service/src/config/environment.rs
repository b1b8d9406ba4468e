//! Environment variables over the file: `VIREO__RUNTIME_DIR=/run/v`, `VIREO__BDEV__MEM0__SIZE=1GiB`. Two underscores
//! stand between the levels; an element of a list is found by its name (or its NSID), without regard to case, with an
//! underscore for a hyphen or a dot. An override changes what the file has; it makes no new elements, but a section that
//! there is only one of.

use super::mistake::{Mistake, suggestion};
use super::section::Notes;
use toml::{Table, Value};

const PREFIX: &str = "VIREO__";
/// Sections that a file may leave out, and of which there is one at most.
const SECTIONS: [&str; 2] = ["api", "telemetry"];

/// Puts the overrides among `variables` into `table`; returns their names.
pub(super) fn overlay(
    table: &mut Table,
    variables: impl IntoIterator<Item = (String, String)>,
    notes: &Notes,
) -> Vec<String> {
    let mut variables: Vec<(String, String)> =
        variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    variables.sort();
    for (name, value) in &variables {
        let levels: Vec<&str> = name[PREFIX.len()..].split("__").collect();
        if let Err((wrong, right)) = set(table, &levels, value, true) {
            notes.borrow_mut().push(Mistake::new(name.clone(), wrong, right));
        }
    }
    variables.into_iter().map(|(name, _)| name).collect()
}

/// `top`: the table is the whole file.
fn set(table: &mut Table, levels: &[&str], value: &str, top: bool) -> Result<(), (String, String)> {
    let Some((first, rest)) = levels.split_first().filter(|(first, _)| !first.is_empty()) else {
        return Err(("names no key".into(), format!("write it like {PREFIX}RUNTIME_DIR")));
    };
    let key = first.to_lowercase();
    if top && !rest.is_empty() && SECTIONS.contains(&&*key) {
        table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
    }
    match (table.get_mut(&key), rest) {
        (_, []) => {
            // Whatever TOML takes as a value is one, everything else is text.
            let parsed =
                format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
            table.insert(key, parsed.unwrap_or_else(|| Value::String(value.to_owned())));
            Ok(())
        }
        (Some(Value::Table(inner)), rest) => set(inner, rest, value, false),
        (Some(Value::Array(elements)), [element, rest @ ..]) if !rest.is_empty() => {
            let names: Vec<String> = elements.iter().map(name).collect();
            match names.iter().position(|name| name == &element.to_lowercase()) {
                Some(index) => match &mut elements[index] {
                    Value::Table(inner) => set(inner, rest, value, false),
                    _ => Err((format!("{key} is not a list of tables"), "correct the file".into())),
                },
                None => Err((
                    format!("there is no {key} \"{}\"", element.to_lowercase()),
                    suggestion(&element.to_lowercase(), names.iter().map(String::as_str)),
                )),
            }
        }
        (Some(_), _) => Err((
            format!("leads through {key}, which has no such levels"),
            format!("write it like {PREFIX}BDEV__MEM0__SIZE"),
        )),
        (None, _) => {
            let known: Vec<&str> = table.keys().map(String::as_str).collect();
            Err((format!("there is no {key}"), suggestion(&key, known)))
        }
    }
}

fn name(element: &Value) -> String {
    let name = element.get("name").or_else(|| element.get("nsid"));
    match name {
        Some(Value::String(name)) => name.to_lowercase().replace(['-', '.'], "_"),
        Some(Value::Integer(number)) => number.to_string(),
        _ => String::new(),
    }
}
