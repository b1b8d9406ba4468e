//! What is known of a controller, each thing once: words for a person, names and values for a program. So the text and the
//! JSON cannot disagree.

use nvme_spec::Status;
use serde_json::{Map, Value};

/// Columns of the text; longer lines are broken between words.
const WIDTH: usize = 110;
/// Where the words of a fact begin.
const INDENT: usize = 28;

/// One thing that is known, or known not to be there.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// What a person calls it.
    pub label: String,
    /// What there is to say of it; several lines are told apart by `\n`.
    pub text: String,
    /// The same for a program: names in snake case with their unit, and values.
    pub values: Vec<(String, Value)>,
}

/// Facts that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// Its place in the JSON.
    pub place: Place,
    /// The facts in order.
    pub facts: Vec<Fact>,
}

/// Where a section's values are in the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An object of this name.
    Object(&'static str),
    /// One more element of the list of this name.
    Element(&'static str),
    /// No element of that list, which is there all the same.
    Empty(&'static str),
}

/// What came of asking for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// The controller gave it.
    Given(T),
    /// The controller refused to.
    Refused(Status),
    /// The controller said before that it does not have it, so it was not asked.
    Absent,
}

impl Section {
    /// A section without facts.
    #[must_use]
    pub fn new(title: impl Into<String>, place: Place) -> Self {
        Self { title: title.into(), place, facts: Vec::new() }
    }

    /// Adds a fact.
    pub fn fact<const N: usize>(
        &mut self,
        label: &str,
        text: impl Into<String>,
        values: [(&str, Value); N],
    ) {
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.facts.push(Fact {
            label: label.to_owned(),
            text: text.into(),
            values: values.collect(),
        });
    }

    /// Adds what of a group there is and what there is not. `flags` are name for a person, name for a program, whether.
    pub fn flags(&mut self, label: &str, name: &str, flags: &[(&str, &str, bool)]) {
        let names = |wanted: bool| {
            let some = flags.iter().filter(|flag| flag.2 == wanted).map(|flag| flag.0);
            some.collect::<Vec<_>>().join(", ")
        };
        let text = match (names(true), names(false)) {
            (there, absent) if absent.is_empty() => there,
            (there, absent) if there.is_empty() => format!("not supported: {absent}"),
            (there, absent) => format!("{there}\nnot supported: {absent}"),
        };
        let values = flags.iter().map(|flag| (flag.1.to_owned(), Value::Bool(flag.2)));
        self.fact(label, text, [(name, Value::Object(values.collect()))]);
    }
}

impl<T> Answer<T> {
    /// What was given.
    pub fn given(&self) -> Option<&T> {
        match self {
            Self::Given(value) => Some(value),
            Self::Refused(_) | Self::Absent => None,
        }
    }

    /// Why nothing was given, in words. Statuses by which a controller says that it has no such thing are told as that.
    pub fn why_not(&self) -> Option<String> {
        const ABSENT: [Status; 4] = [
            Status::INVALID_FIELD,
            Status::INVALID_OPCODE,
            Status::INVALID_LOG_PAGE,
            Status::INVALID_NAMESPACE_OR_FORMAT,
        ];
        match self {
            Self::Given(_) => None,
            Self::Refused(status) if !ABSENT.contains(&status.code()) => {
                Some(format!("the controller refuses to tell: {status}"))
            }
            Self::Refused(_) | Self::Absent => Some("not supported".to_owned()),
        }
    }
}

/// All sections as text.
#[must_use]
pub fn text(sections: &[Section]) -> String {
    let blocks = sections.iter().map(|section| {
        let mut block = format!("{}\n", section.title);
        for fact in &section.facts {
            for (index, line) in fact.text.split('\n').enumerate() {
                let label = if index == 0 { fact.label.as_str() } else { "" };
                push_line(&mut block, label, line);
            }
        }
        block
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// All sections as one JSON object.
#[must_use]
pub fn json(sections: &[Section]) -> Map<String, Value> {
    let mut root = Map::new();
    for section in sections {
        let values = section.facts.iter().flat_map(|fact| fact.values.iter().cloned());
        let object = Value::Object(values.collect());
        match section.place {
            Place::Object(name) => {
                root.insert(name.to_owned(), object);
            }
            Place::Element(name) => {
                let list = root.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(object);
                }
            }
            Place::Empty(name) => {
                root.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            }
        }
    }
    root
}

/// One line of a fact, broken where it is too long.
fn push_line(block: &mut String, label: &str, line: &str) {
    let mut current = format!("  {label:<width$}", width = INDENT - 2);
    if current.len() > INDENT {
        current.push(' ');
    }
    let mut empty = true;
    for word in line.split(' ') {
        if !empty && current.chars().count() + 1 + word.chars().count() > WIDTH {
            block.push_str(current.trim_end());
            block.push('\n');
            current = " ".repeat(INDENT + 2);
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        current.push_str(word);
        empty = false;
    }
    block.push_str(current.trim_end());
    block.push('\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_long_line_is_broken_between_words_and_loses_none() {
        let words: Vec<String> = (0..60).map(|number| format!("word{number}")).collect();
        let mut section = Section::new("Title", Place::Object("o"));
        section.fact("label", words.join(" "), [("n", json!(1))]);
        let text = text(&[section]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let found: Vec<_> = text.split_whitespace().skip(2).collect();
        assert_eq!(found, words);
    }

    #[test]
    fn a_group_says_what_there_is_and_what_there_is_not() {
        let mut section = Section::new("Title", Place::Object("o"));
        section.flags("all", "all", &[("One", "one", true), ("Two", "two", true)]);
        section.flags("some", "some", &[("One", "one", true), ("Two", "two", false)]);
        section.flags("none", "none", &[("One", "one", false)]);
        let texts: Vec<_> = section.facts.iter().map(|fact| fact.text.as_str()).collect();
        assert_eq!(texts, ["One, Two", "One\nnot supported: Two", "not supported: One"]);
        let json = json(&[section]);
        assert_eq!(json["o"]["some"], json!({"one": true, "two": false}));
    }

    #[test]
    fn elements_become_a_list() {
        let mut one = Section::new("Namespace 1", Place::Element("namespaces"));
        one.fact("id", "1", [("nsid", json!(1))]);
        let mut two = Section::new("Namespace 2", Place::Element("namespaces"));
        two.fact("id", "2", [("nsid", json!(2))]);
        assert_eq!(json(&[one, two])["namespaces"], json!([{"nsid": 1}, {"nsid": 2}]));
    }

    #[test]
    fn a_refusal_that_means_absence_is_told_as_absence() {
        let refused = |status: Status| Answer::<()>::Refused(status.with_dnr()).why_not();
        assert_eq!(refused(Status::INVALID_FIELD).as_deref(), Some("not supported"));
        assert!(refused(Status::INTERNAL_ERROR).is_some_and(|text| text.contains("Internal")));
        assert_eq!(Answer::Given(()).why_not(), None);
    }
}
