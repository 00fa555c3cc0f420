//! What the system says about a process: its CPU time, its memory, and its limits.

use std::io;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// CPU time in user mode.
    pub(crate) user_seconds: f64,
    /// CPU time in the kernel.
    pub(crate) system_seconds: f64,
    /// Memory that is resident.
    pub(crate) resident_bytes: u64,
}

/// Reads the usage of a process, in steps of a clock tick (commonly 10 ms).
#[cfg(target_os = "linux")]
pub(crate) fn usage(pid: u32) -> io::Result<Usage> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(
        &text,
        rustix::param::clock_ticks_per_second() as f64,
        rustix::param::page_size() as u64,
    )
    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected form of /proc/PID/stat"))
}

/// There is no `/proc` to read.
#[cfg(not(target_os = "linux"))]
pub(crate) fn usage(_pid: u32) -> io::Result<Usage> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reads `/proc/PID/stat`. The second field is the program's name in parentheses, which may hold
/// spaces and parentheses itself; after it come field 3 and the rest.
#[cfg(any(target_os = "linux", test))]
fn parse_stat(text: &str, ticks_per_second: f64, page_bytes: u64) -> Option<Usage> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Usage {
        user_seconds: field(14)? as f64 / ticks_per_second,
        system_seconds: field(15)? as f64 / ticks_per_second,
        resident_bytes: field(24)? * page_bytes,
    })
}

/// Raises the limit on open descriptors as far as the system allows without privilege.
/// Gives the limit, or `None` if there is none.
#[cfg(unix)]
pub(crate) fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        // Some systems refuse what they give as the maximum. What there is will do or not.
        Err(_) => current,
    }
}

/// Sockets are not limited by a number per process here.
#[cfg(not(unix))]
pub(crate) fn raise_descriptor_limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 1000 8192 25 184467";
        let usage = parse_stat(text, 100.0, 4096).expect("well-formed");
        assert_eq!(
            usage,
            Usage { user_seconds: 2.5, system_seconds: 0.5, resident_bytes: 25 * 4096 }
        );
    }

    #[test]
    fn malformed_text_is_no_usage() {
        assert_eq!(parse_stat("", 100.0, 4096), None);
        assert_eq!(parse_stat("42 (x) S 1 2 3", 100.0, 4096), None);
    }
}
