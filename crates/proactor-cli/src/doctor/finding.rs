//! One thing that was looked at, and how good it is.

use serde::Serialize;

/// The section of what can refuse io_uring.
pub(crate) const PERMISSION: &str = "Permission for io_uring";

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Nothing to be done.
    Good,
    /// It works, and could work better.
    Limited,
    /// Could not be read, and nothing follows from it.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) value: String,
    /// What to change for more; one line.
    pub(crate) advice: Option<String>,
}

impl Finding {
    pub(crate) fn new(section: &'static str, name: &'static str, value: impl Into<String>) -> Self {
        Self { section, name, verdict: Verdict::Good, value: value.into(), advice: None }
    }

    /// Where `wanting` holds, the finding is a limit, with this advice.
    pub(crate) fn limited_if(mut self, wanting: bool, advice: impl Into<String>) -> Self {
        if wanting {
            self.verdict = Verdict::Limited;
            self.advice = Some(advice.into());
        }
        self
    }

    pub(crate) fn unknown(section: &'static str, name: &'static str) -> Self {
        let verdict = Verdict::Unknown;
        Self { section, name, verdict, value: "cannot be read here".into(), advice: None }
    }

    /// The value, or that it is not known.
    pub(crate) fn named(section: &'static str, name: &'static str, value: Option<String>) -> Self {
        match value {
            Some(value) => Self::new(section, name, value),
            None => Self::unknown(section, name),
        }
    }
}

/// A size in the largest unit that leaves at least one digit before the point.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| bytes >= *size) {
        None => format!("{bytes} B"),
        Some((unit, size)) if bytes.is_multiple_of(*size) => format!("{} {unit}", bytes / size),
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes_text(512), "512 B");
        assert_eq!(bytes_text(4096), "4 KiB");
        assert_eq!(bytes_text(6_291_456), "6 MiB");
        assert_eq!(bytes_text(1_610_612_736), "1.5 GiB");
    }
}
