//! The findings as a table of 80 columns, or as JSON.

use std::fmt;

use serde::Serialize;

use super::backends::{BackendState, Backends};
use super::finding::{Finding, PERMISSION, Verdict};

const COLUMNS: usize = 80;
/// The mark before a name, and where the text behind the name begins.
const MARK_COLUMNS: usize = 6;
const TEXT_COLUMN: usize = 33;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    can_run: bool,
    #[serde(flatten)]
    backends: Backends,
    findings: Vec<Finding>,
    /// What to change for more.
    advice: Vec<String>,
}

impl Report {
    /// Puts the findings together.
    pub(crate) fn new(backends: Backends, findings: Vec<Finding>) -> Self {
        let mut advice = Vec::new();
        let is_explained = findings
            .iter()
            .any(|finding| finding.section == PERMISSION && finding.advice.is_some());
        for backend in &backends.backends {
            if let (Some(refusal), false) = (&backend.refusal, is_explained) {
                advice.push(format!("{}: {}", backend.name, one_line(refusal)));
            }
        }
        for feature in backends.backends.iter().flat_map(|backend| &backend.features) {
            if !feature.available {
                advice.push(format!("{}: {}", feature.name, one_line(&feature.detail)));
            }
        }
        advice.extend(findings.iter().filter_map(|finding| finding.advice.clone()));
        Self { can_run: backends.would_use.is_some(), backends, findings, advice }
    }

    /// Why no backend works, if none does.
    pub(crate) fn why_it_cannot_run(&self) -> Option<&str> {
        if self.can_run {
            return None;
        }
        Some(self.backends.refusal.as_deref().unwrap_or("no backend works"))
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("text and numbers under fixed names are JSON")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Proactor on this machine")?;
        match self.backends.would_use {
            Some(name) => write_entry(f, Mark::Good, "would use", name)?,
            None => write_entry(f, Mark::Missing, "would use", "nothing: no backend works here")?,
        }
        if let Some(forced) = &self.backends.forced_by_environment {
            let text = format!("PROACTOR_BACKEND={forced} is set, and decides for programs");
            write_entry(f, Mark::Limited, "environment", &text)?;
        }
        for backend in &self.backends.backends {
            write_backend(f, backend)?;
        }
        let mut section = "";
        for finding in &self.findings {
            if finding.section != section {
                section = finding.section;
                writeln!(f, "\n{section}")?;
            }
            write_entry(f, finding.verdict.into(), finding.name, &finding.value)?;
        }
        writeln!(f, "\nWhat to change for more")?;
        if self.advice.is_empty() {
            writeln!(f, "  nothing: this machine has what Proactor uses")?;
        }
        for line in &self.advice {
            write_wrapped(f, "  - ", 4, line)?;
        }
        Ok(())
    }
}

fn write_backend(f: &mut fmt::Formatter<'_>, backend: &BackendState) -> fmt::Result {
    writeln!(f, "\nBackend {}", backend.name)?;
    match &backend.refusal {
        Some(refusal) => write_entry(f, Mark::Missing, "not to be had", refusal)?,
        None => write_entry(f, Mark::Good, "works", "")?,
    }
    for feature in &backend.features {
        let mark = match (feature.available, feature.required) {
            (true, _) => Mark::Good,
            (false, false) => Mark::Limited,
            (false, true) => Mark::Missing,
        };
        write_entry(f, mark, &feature.name, &feature.detail)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Mark {
    Good,
    Limited,
    Missing,
    Unknown,
}

impl Mark {
    fn text(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Limited => "low",
            Self::Missing => "no",
            Self::Unknown => "?",
        }
    }
}

impl From<Verdict> for Mark {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Good => Self::Good,
            Verdict::Limited => Self::Limited,
            Verdict::Unknown => Self::Unknown,
        }
    }
}

/// A mark, a name and a text that goes on below itself.
fn write_entry(f: &mut fmt::Formatter<'_>, mark: Mark, name: &str, text: &str) -> fmt::Result {
    let name_columns = TEXT_COLUMN - MARK_COLUMNS;
    let head = format!("  {:<4}{name:<name_columns$}", mark.text());
    if name.chars().count() < name_columns || text.is_empty() {
        return write_wrapped(f, head.trim_end(), TEXT_COLUMN, text);
    }
    writeln!(f, "{}", head.trim_end())?;
    write_wrapped(f, "", TEXT_COLUMN, text)
}

/// Writes words from column `indent` on; the first line begins with `head`.
fn write_wrapped(f: &mut fmt::Formatter<'_>, head: &str, indent: usize, text: &str) -> fmt::Result {
    let mut line = head.to_owned();
    let mut line_is_empty = true;
    for word in text.split_whitespace() {
        let columns = line.chars().count();
        if !line_is_empty && columns + 1 + word.chars().count() > COLUMNS {
            writeln!(f, "{line}")?;
            line.clear();
            line_is_empty = true;
        }
        let gap = if line_is_empty { indent.saturating_sub(line.chars().count()) } else { 1 };
        line.extend(std::iter::repeat_n(' ', gap));
        line.push_str(word);
        line_is_empty = false;
    }
    writeln!(f, "{}", line.trim_end())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::backends::Feature;
    use super::*;

    fn report(would_use: Option<&'static str>) -> Report {
        let backends = Backends {
            would_use,
            refusal: would_use.is_none().then(|| "create port: not supported".into()),
            forced_by_environment: Some("epoll".into()),
            backends: vec![BackendState {
                name: "io_uring",
                refusal: Some("io_uring_setup: EPERM: blocked by a seccomp filter".into()),
                features: vec![Feature {
                    name: "IORING_SETUP_A_VERY_LONG_NAME_INDEED".into(),
                    available: false,
                    required: false,
                    detail: "words enough to fill more than one line of the table, and then \
                                 some more of them, so that the text has to go on below itself"
                        .into(),
                }],
            }],
        };
        let long = "words enough to fill more than one line of the table, so that it goes on below";
        let findings = vec![
            Finding::new("Machine", "processors", "2, so concurrency 0 means 2"),
            Finding::new("Machine", "memory", long).limited_if(true, "buy more"),
            Finding::unknown("Network", "somaxconn"),
        ];
        Report::new(backends, findings)
    }

    #[test]
    fn the_table_fits_80_columns() {
        let text = report(Some("epoll")).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
            assert_eq!(line, line.trim_end());
        }
        assert!(text.contains("io_uring_setup: EPERM"));
    }

    #[test]
    fn it_says_why_it_cannot_run() {
        assert_eq!(report(Some("epoll")).why_it_cannot_run(), None);
        assert_eq!(report(None).why_it_cannot_run(), Some("create port: not supported"));
    }

    #[test]
    fn json_has_the_same_findings() {
        let json: serde_json::Value =
            serde_json::from_str(&report(Some("epoll")).to_json()).unwrap();
        assert_eq!(json["can_run"], true);
        assert_eq!(json["would_use"], "epoll");
        assert_eq!(json["backends"][0]["features"][0]["available"], false);
        assert_eq!(json["findings"].as_array().unwrap().len(), 3);
        assert_eq!(json["findings"][2]["verdict"], "unknown");
    }
}
