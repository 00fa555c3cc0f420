//! What the system says about itself: read, parsed, not judged.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use super::cgroup::CgroupLimits;

/// A soft and a hard limit; `None` stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourceLimit {
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// The three sizes of a TCP buffer: least, at first, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BufferSizes {
    pub(crate) least: u64,
    pub(crate) initial: u64,
    pub(crate) most: u64,
}

/// Everything that is looked at. What could not be read is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) kernel: Option<String>,
    pub(crate) proc_is_readable: bool,
    pub(crate) processors: Option<usize>,
    pub(crate) memory_kib: Option<u64>,
    pub(crate) cgroup: CgroupLimits,
    /// 0: for all; 1: for the privileged and one group; 2: for nobody.
    pub(crate) io_uring_disabled: Option<u64>,
    /// 0: none; 1: strict; 2: a filter.
    pub(crate) seccomp: Option<u64>,
    pub(crate) locked_memory: ResourceLimit,
    pub(crate) descriptors: ResourceLimit,
    /// The most that a hard limit on descriptors can be.
    pub(crate) nr_open: Option<u64>,
    /// Descriptors of the whole system.
    pub(crate) file_max: Option<u64>,
    pub(crate) somaxconn: Option<u64>,
    pub(crate) tcp_max_syn_backlog: Option<u64>,
    pub(crate) local_ports: Option<(u64, u64)>,
    pub(crate) tcp_rmem: Option<BufferSizes>,
    pub(crate) tcp_wmem: Option<BufferSizes>,
}

impl Facts {
    /// Reads what is under `root`, which is `/` except in tests, and the process's limits.
    pub(crate) fn read(root: &Path) -> Self {
        let sysctl = |name: &str| read_text(&root.join("proc/sys").join(name));
        let number = |name: &str| sysctl(name).and_then(|text| parse(&text));
        let status = read_text(&root.join("proc/self/status"));
        let memory = read_text(&root.join("proc/meminfo"));
        Self {
            kernel: sysctl("kernel/osrelease"),
            proc_is_readable: status.is_some(),
            processors: std::thread::available_parallelism().ok().map(usize::from),
            memory_kib: memory.as_deref().and_then(|text| field(text, "MemTotal")),
            cgroup: CgroupLimits::read(root),
            io_uring_disabled: number("kernel/io_uring_disabled"),
            seccomp: status.as_deref().and_then(|text| field(text, "Seccomp")),
            locked_memory: resource_limits().0,
            descriptors: resource_limits().1,
            nr_open: number("fs/nr_open"),
            file_max: number("fs/file-max"),
            somaxconn: number("net/core/somaxconn"),
            tcp_max_syn_backlog: number("net/ipv4/tcp_max_syn_backlog"),
            local_ports: sysctl("net/ipv4/ip_local_port_range").and_then(|text| range(&text)),
            tcp_rmem: sysctl("net/ipv4/tcp_rmem").and_then(|text| buffer_sizes(&text)),
            tcp_wmem: sysctl("net/ipv4/tcp_wmem").and_then(|text| buffer_sizes(&text)),
        }
    }
}

/// A file's text without the newline at its end; `None` where it cannot be read.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

/// The number behind `name:` in a file like `/proc/self/status`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| parse(value.split_whitespace().next()?))
}

fn range(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_whitespace().map(parse);
    Some((numbers.next()??, numbers.next()??))
}

fn buffer_sizes(text: &str) -> Option<BufferSizes> {
    let mut numbers = text.split_whitespace().map(parse);
    let (least, initial, most) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some(BufferSizes { least, initial, most })
}

/// The limits on locked memory and on descriptors.
#[cfg(unix)]
fn resource_limits() -> (ResourceLimit, ResourceLimit) {
    use rustix::process::{Resource, getrlimit};

    let read = |resource| {
        let limit = getrlimit(resource);
        ResourceLimit { soft: limit.current, hard: limit.maximum }
    };
    (read(Resource::Memlock), read(Resource::Nofile))
}

#[cfg(not(unix))]
fn resource_limits() -> (ResourceLimit, ResourceLimit) {
    Default::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_parsed() {
        let status = "Name:\tproactor\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(field(status, "Seccomp"), Some(2));
        assert_eq!(field(status, "NoNewPrivs"), None);
        assert_eq!(field("MemTotal:       16310120 kB", "MemTotal"), Some(16_310_120));
        assert_eq!(range("32768\t60999"), Some((32_768, 60_999)));
        assert_eq!(range("32768"), None);
        let sizes = BufferSizes { least: 4096, initial: 131_072, most: 6_291_456 };
        assert_eq!(buffer_sizes("4096\t131072\t6291456"), Some(sizes));
    }

    #[test]
    fn what_is_not_there_is_none() {
        let nothing = tempfile::tempdir().unwrap();
        let facts = Facts::read(nothing.path());
        assert!(!facts.proc_is_readable);
        assert_eq!((facts.kernel, facts.somaxconn, facts.seccomp), (None, None, None));
    }

    #[test]
    fn facts_are_read_from_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/sys/kernel/osrelease", "6.18.0-test\n");
        write("proc/sys/kernel/io_uring_disabled", "1\n");
        write("proc/self/status", "Seccomp:\t0\n");
        write("proc/sys/net/core/somaxconn", "128\n");
        let facts = Facts::read(root.path());
        assert_eq!(facts.kernel.as_deref(), Some("6.18.0-test"));
        assert_eq!(facts.io_uring_disabled, Some(1));
        assert_eq!(facts.seccomp, Some(0));
        assert_eq!(facts.somaxconn, Some(128));
    }
}
