//! The limits of the control group that the process runs in (a container, a systemd service).

use std::path::{Path, PathBuf};

use super::facts::read_text;

/// What the group may use; `None` where there is no limit, or no group to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct CgroupLimits {
    /// Processors' worth of time.
    pub(crate) processors: Option<f64>,
    pub(crate) memory_bytes: Option<u64>,
    /// Processes and threads together.
    pub(crate) tasks: Option<u64>,
}

/// Version 1 says "no limit" with a number near the largest.
const NO_LIMIT_BYTES: u64 = 1 << 60;

impl CgroupLimits {
    /// Reads the limits, in either version of the interface.
    pub(crate) fn read(root: &Path) -> Self {
        let Some(membership) = read_text(&root.join("proc/self/cgroup")) else {
            return Self::default();
        };
        let hierarchy = root.join("sys/fs/cgroup");
        let unified = membership.lines().find_map(|line| line.strip_prefix("0::"));
        let second = match unified {
            Some(group) => Self::read_second(&hierarchy, group),
            None => Self::default(),
        };
        let first = Self::read_first(&hierarchy, &membership);
        Self {
            processors: second.processors.or(first.processors),
            memory_bytes: second.memory_bytes.or(first.memory_bytes),
            tasks: second.tasks.or(first.tasks),
        }
    }

    /// Version 2: one tree, and each group's parents bind it too.
    fn read_second(hierarchy: &Path, group: &str) -> Self {
        let mut limits = Self::default();
        for directory in self_and_parents(hierarchy, group) {
            let number = |file: &str| read_text(&directory.join(file))?.parse::<u64>().ok();
            let processors = read_text(&directory.join("cpu.max"))
                .and_then(|text| quota(text.split_whitespace()));
            limits.processors = least(limits.processors, processors);
            limits.memory_bytes = least(limits.memory_bytes, number("memory.max"));
            limits.tasks = least(limits.tasks, number("pids.max"));
        }
        limits
    }

    /// Version 1: a tree for each controller.
    fn read_first(hierarchy: &Path, membership: &str) -> Self {
        let read = |controller: &str, file: &str| {
            let group = membership.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                controllers.split(',').any(|name| name == controller).then(|| parts.next())?
            })?;
            // In a container the group's own path is often not mounted, and the root is the group.
            self_and_parents(&hierarchy.join(controller), group)
                .find_map(|directory| read_text(&directory.join(file)))
        };
        let times = [read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us")];
        Self {
            processors: quota(times.iter().flatten().map(String::as_str)),
            memory_bytes: read("memory", "memory.limit_in_bytes")
                .and_then(|text| text.parse().ok())
                .filter(|bytes| *bytes < NO_LIMIT_BYTES),
            tasks: read("pids", "pids.max").and_then(|text| text.parse().ok()),
        }
    }
}

/// The group's directory, then its parents', up to the root of the hierarchy.
fn self_and_parents(hierarchy: &Path, group: &str) -> impl Iterator<Item = PathBuf> {
    let hierarchy = hierarchy.to_owned();
    let group = hierarchy.join(group.trim_start_matches('/'));
    let directories: Vec<PathBuf> = group
        .ancestors()
        .take_while(|directory| directory.starts_with(&hierarchy))
        .map(Path::to_owned)
        .collect();
    directories.into_iter()
}

/// Processors' worth of time, from a quota and a period in microseconds.
fn quota<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<f64> {
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next()?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

fn least<T: PartialOrd>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other < one { other } else { one }),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn version_2_takes_the_least_of_a_group_and_its_parents() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/memory.max", "536870912\n"),
            ("sys/fs/cgroup/a/b/pids.max", "max\n"),
        ]);
        let limits = CgroupLimits::read(root.path());
        assert_eq!(limits.processors, Some(1.5));
        assert_eq!(limits.memory_bytes, Some(536_870_912));
        assert_eq!(limits.tasks, None);
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller() {
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/c\n3:cpu,cpuacct:/c\n2:pids:/c\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/pids/c/pids.max", "100\n"),
        ]);
        let limits = CgroupLimits::read(root.path());
        assert_eq!(limits.processors, Some(0.5));
        assert_eq!(limits.memory_bytes, None);
        assert_eq!(limits.tasks, Some(100));
    }

    #[test]
    fn without_a_group_there_is_no_limit() {
        assert_eq!(CgroupLimits::read(tree(&[]).path()), CgroupLimits::default());
    }
}
