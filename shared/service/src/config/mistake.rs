//! What is wrong with a configuration, for a person, one line each.

use std::fmt;

/// One mistake: where, what is wrong, what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key's path, as in `bdev[2].size`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub wrong: String,
    /// What would be right.
    pub right: String,
}

impl Mistake {
    /// A mistake at `key`.
    pub fn new(key: impl Into<String>, wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self { key: key.into(), wrong: wrong.into(), right: right.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        // One line, whatever stands in the configuration.
        let text = format!("{}; {}", self.wrong, self.right);
        f.write_str(&text.replace(['\n', '\r'], " "))
    }
}

/// A configuration that cannot be used: every mistake that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    /// The file.
    pub source: String,
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let line_feed = if index == 0 { "" } else { "\n" };
            write!(f, "{line_feed}{}: {mistake}", self.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// `did you mean "x"?` if one of `known` is close to `word`, else what is known.
pub(super) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known.iter().map(|candidate| (distance(word, candidate), candidate)).min();
    match nearest {
        // A third of the word may differ, as most typing mistakes leave more than that.
        Some((edits, candidate)) if edits <= (word.len() / 3).max(1) => {
            format!("did you mean \"{candidate}\"?")
        }
        Some(_) => format!("known: {}", known.join(", ")),
        None => "none is configured".to_owned(),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) from one word to another.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let edited = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { edited.min(rows[i - 2][j - 2] + 1) } else { edited }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_finds_its_word() {
        assert_eq!(distance("driver", "driver"), 0);
        assert_eq!(distance("drvier", "driver"), 1);
        assert_eq!(suggestion("sise", ["size", "name"]), "did you mean \"size\"?");
        assert_eq!(suggestion("zzzzzz", ["size", "name"]), "known: size, name");
        assert_eq!(suggestion("x", []), "none is configured");
    }
}
