//! What was found, and how it is told.

use crate::admin::Format;
use anyhow::Context;
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It stands in the way.
    Problem,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// As it should be.
    Ok,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Problem => "PROBLEM",
            Self::Warning => "warning",
            Self::Ok => "ok",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at, in a word or three.
    pub check: String,
    /// What was found, in one line.
    pub found: String,
    /// What to do about it, in one line; empty where there is nothing to do.
    pub remedy: String,
}

impl Finding {
    /// All is well.
    pub fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check: check.into(), found: found.into(), remedy: String::new() }
    }

    /// It works, but.
    pub fn warning(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (check, found, remedy) = (check.into(), found.into(), remedy.into());
        Self { level: Level::Warning, check, found, remedy }
    }

    /// It does not work.
    pub fn problem(
        check: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Problem, ..Self::warning(check, found, remedy) }
    }

    /// With something that could be done all the same.
    #[must_use]
    pub fn with_advice(self, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..self }
    }
}

/// All findings.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How many of them are problems.
    pub problems: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Puts them in order, each in one line that a terminal can be given.
    pub fn of(mut findings: Vec<Finding>) -> Self {
        for finding in &mut findings {
            for text in [&mut finding.check, &mut finding.found, &mut finding.remedy] {
                *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            }
        }
        findings.sort_by_key(|finding| finding.level);
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
        Self { problems, warnings, findings }
    }

    /// As a person or a program reads it.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn text(&self, format: Format) -> anyhow::Result<String> {
        match format {
            Format::Table => Ok(self.table()),
            Format::Json => {
                let text = serde_json::to_string_pretty(self).context("write json")?;
                Ok(format!("{text}\n"))
            }
            Format::Yaml => serde_yaml_ng::to_string(self).context("write yaml"),
        }
    }

    fn table(&self) -> String {
        let width = self.findings.iter().map(|f| f.check.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            let (level, check) = (finding.level.word(), &finding.check);
            text.push_str(&format!("{level:<7}  {check:<width$}  {}\n", finding.found));
            if !finding.remedy.is_empty() {
                let what = if finding.level == Level::Ok { "hint" } else { "remedy" };
                text.push_str(&format!(
                    "{:width$}  {what}: {}\n",
                    "",
                    finding.remedy,
                    width = width + 9
                ));
            }
        }
        text.push_str(&match (self.problems, self.warnings) {
            (0, 0) => "\nno problems\n".to_owned(),
            (0, warnings) => format!("\nno problems, {}\n", plural(warnings, "warning")),
            (problems, warnings) => {
                format!("\n{}, {}\n", plural(problems, "problem"), plural(warnings, "warning"))
            }
        });
        text
    }
}

/// `1 worker`, `2 workers`, `3 processes`.
pub fn plural(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ if what.ends_with('s') => format!("{number} {what}es"),
        _ => format!("{number} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worst_stands_first_and_each_in_one_line() {
        let findings = vec![
            Finding::ok("kernel", "6.1.0"),
            Finding::warning("QEMU", "is old", "take a newer one"),
            Finding::problem("a\u{1b}[2J", "two\nlines", "none"),
            Finding::ok("cores", "not isolated").with_advice("isolcpus=2"),
        ];
        let report = Report::of(findings);
        assert_eq!((report.problems, report.warnings), (1, 1));
        let text = report.text(Format::Table).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "PROBLEM  a [2J   two lines", "{text}");
        assert_eq!(lines[1], "                 remedy: none", "{text}");
        assert_eq!(lines[6], "                 hint: isolcpus=2", "{text}");
        assert_eq!(lines.last(), Some(&"1 problem, 1 warning"));
        let json: serde_json::Value =
            serde_json::from_str(&report.text(Format::Json).unwrap()).unwrap();
        assert_eq!(
            (json["findings"][0]["level"].as_str(), json["problems"].as_u64()),
            (Some("problem"), Some(1))
        );
        assert!(report.text(Format::Yaml).unwrap().contains("level: warning"));
    }
}
