//! What a server's process has used: CPU time, context switches, memory.

use std::collections::HashMap;
use std::time::Duration;

/// What one process has used so far; `None` where the system does not say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used {
    pub(crate) cpu: Option<Duration>,
    /// Of each thread that lives, by its number.
    pub(crate) switches: Option<HashMap<u32, u64>>,
    /// Anonymous memory that is resident: the process's own.
    pub(crate) memory_bytes: Option<u64>,
}

impl Used {
    /// Looks at a process. The CPU time comes first and is exact; to count the switches of thousands
    /// of threads takes some milliseconds.
    pub(crate) fn of(pid: u32) -> Self {
        Self {
            cpu: system::cpu_time(pid),
            memory_bytes: system::memory_bytes(pid),
            switches: system::switches(pid),
        }
    }

    /// CPU time since `earlier`.
    pub(crate) fn cpu_since(&self, earlier: &Self) -> Option<Duration> {
        self.cpu?.checked_sub(earlier.cpu?)
    }

    /// Context switches since `earlier`; `None` where threads have ended since, because theirs
    /// are not known.
    pub(crate) fn switches_since(&self, earlier: &Self) -> Option<u64> {
        let (now, before) = (self.switches.as_ref()?, earlier.switches.as_ref()?);
        if before.keys().any(|thread| !now.contains_key(thread)) {
            return None;
        }
        let since = |(thread, count): (&u32, &u64)| {
            count.saturating_sub(before.get(thread).copied().unwrap_or(0))
        };
        Some(now.iter().map(since).sum())
    }
}

pub(crate) use system::{cpu_time, machine_cpu_time, switches_of_ended_children};

#[cfg(target_os = "linux")]
mod system {
    use std::collections::HashMap;
    use std::fs;
    use std::time::Duration;

    use nix::sys::resource::{UsageWho, getrusage};
    use nix::time::clock_getcpuclockid;
    use nix::unistd::Pid;

    /// The process's CPU clock: exact to the nanosecond, and with the threads that have ended
    /// (clock_getcpuclockid(3)).
    pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid).ok()?)).ok()?;
        clock.now().ok().map(Duration::from)
    }

    pub(super) fn memory_bytes(pid: u32) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        field(&status, "RssAnon:").map(|kib| kib * 1024)
    }

    pub(super) fn switches(pid: u32) -> Option<HashMap<u32, u64>> {
        let mut switches = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            let thread = entry.file_name().to_str()?.parse().ok()?;
            // A thread that ends just now has no file any more.
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
            let count = |name| field(&status, name).unwrap_or(0);
            let sum = count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:");
            switches.insert(thread, sum);
        }
        Some(switches)
    }

    /// Context switches, in all their life, of the children that this process has waited for
    /// (getrusage(2), `RUSAGE_CHILDREN`); the difference around a wait is that child's.
    pub(crate) fn switches_of_ended_children() -> Option<u64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
        let sum = usage.voluntary_context_switches() + usage.involuntary_context_switches();
        u64::try_from(sum).ok()
    }

    /// Time that all processors have spent on something (proc(5), `stat`): without idle, waiting
    /// for a disk, or taken by the host.
    pub(crate) fn machine_cpu_time() -> Option<Duration> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let ticks: Vec<u64> = text
            .lines()
            .next()?
            .split_ascii_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq
        let busy = [0, 1, 2, 5, 6].iter().filter_map(|&place| ticks.get(place)).sum::<u64>();
        Some(Duration::from_secs_f64(busy as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// The number behind a name at the start of a line.
    fn field(text: &str, name: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }
}

/// There is no such look at another process here.
#[cfg(not(target_os = "linux"))]
mod system {
    use std::collections::HashMap;
    use std::time::Duration;

    pub(crate) fn cpu_time(_pid: u32) -> Option<Duration> {
        None
    }

    pub(super) fn memory_bytes(_pid: u32) -> Option<u64> {
        None
    }

    pub(super) fn switches(_pid: u32) -> Option<HashMap<u32, u64>> {
        None
    }

    pub(crate) fn switches_of_ended_children() -> Option<u64> {
        None
    }

    pub(crate) fn machine_cpu_time() -> Option<Duration> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_look_at_itself() {
        let before = Used::of(std::process::id());
        let mut sum = 0_u64;
        while Used::of(std::process::id()).cpu_since(&before).unwrap().is_zero() {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(before.memory_bytes.unwrap() > 0);
        assert!(!before.switches.as_ref().unwrap().is_empty());
        assert!(machine_cpu_time().unwrap() >= before.cpu.unwrap() / 2);
    }

    #[test]
    fn switches_of_threads_that_ended_are_not_guessed() {
        let used = |threads: &[(u32, u64)]| Used {
            switches: Some(threads.iter().copied().collect()),
            ..Used::default()
        };
        let before = used(&[(1, 10), (2, 5)]);
        assert_eq!(used(&[(1, 13), (2, 5), (3, 4)]).switches_since(&before), Some(7));
        assert_eq!(used(&[(1, 13)]).switches_since(&before), None);
        assert_eq!(Used::default().switches_since(&before), None);
    }
}
