//! What each fact about Linux means for a server, and what would change it.

use super::backends::Backends;
use super::facts::{BufferSizes, Facts};
use super::finding::{Finding, PERMISSION, bytes_text};

/// Connects that come in a burst and are not dropped (a backlog of 1,024 drops one of 10,000).
const GOOD_BACKLOG: u64 = 4096;
/// Descriptors for ten thousand sessions, and room.
const GOOD_DESCRIPTORS: u64 = 16_384;
/// What to ask for when asking.
const MANY_DESCRIPTORS: u64 = 1_048_576;
/// Client ports for a load of ten thousand connections, with as many closed ones in TIME_WAIT.
const GOOD_PORTS: u64 = 20_000;
/// A TCP buffer that fills a fast connection.
const GOOD_TCP_BUFFER: u64 = 1 << 20;
/// What rings and registered memory may take where the kernel counts them as locked.
const GOOD_LOCKED_BYTES: u64 = 8 << 20;
/// Threads of a server with spare workers.
const GOOD_TASKS: u64 = 64;

/// Judges everything, in the order in which it is shown.
pub(crate) fn judge(facts: &Facts, backends: &Backends) -> Vec<Finding> {
    let mut findings = machine(facts);
    findings.extend(permissions(facts, backends));
    findings.extend(descriptors(facts));
    findings.extend(network(facts));
    findings
}

fn machine(facts: &Facts) -> Vec<Finding> {
    const SECTION: &str = "Machine";
    let named = |name, value: Option<String>| Finding::named(SECTION, name, value);
    let processors = facts.processors.unwrap_or(1);
    let quota = facts.cgroup.processors;
    let tasks = facts.cgroup.tasks;
    vec![
        named("kernel", facts.kernel.as_ref().map(|kernel| format!("Linux {kernel}"))),
        named("processors", Some(format!("{processors}, so concurrency 0 means {processors}"))),
        named(
            "cgroup CPU limit",
            Some(match quota {
                None => "none".to_owned(),
                Some(quota) => format!("{quota:.2} processors' worth of time"),
            }),
        )
        .limited_if(
            quota.is_some_and(|quota| quota.ceil() < processors as f64),
            format!(
                "raise the group's cpu.max, or start with --concurrency {}",
                quota.unwrap_or(1.0).ceil()
            ),
        ),
        named("memory", facts.memory_kib.map(|kib| bytes_text(kib * 1024))),
        named(
            "cgroup memory limit",
            Some(match facts.cgroup.memory_bytes {
                None => "none".to_owned(),
                Some(bytes) => bytes_text(bytes),
            }),
        ),
        named("cgroup task limit", Some(limit_text(tasks))).limited_if(
            tasks.is_some_and(|tasks| tasks < GOOD_TASKS),
            "raise pids.max to 64 or more (docker --pids-limit, systemd TasksMax=)",
        ),
        named("/proc", facts.proc_is_readable.then(|| "readable".to_owned())),
    ]
}

fn permissions(facts: &Facts, backends: &Backends) -> Vec<Finding> {
    const SECTION: &str = PERMISSION;
    let is_refused = backends.named("io_uring").is_some_and(|backend| backend.refusal.is_some());
    let sysctl = match facts.io_uring_disabled {
        None => Finding::new(SECTION, "io_uring_disabled", "not known to this kernel"),
        Some(0) => Finding::new(SECTION, "io_uring_disabled", "0: every process may use it"),
        Some(1) => Finding::new(
            SECTION,
            "io_uring_disabled",
            "1: CAP_SYS_ADMIN or the group kernel.io_uring_group may use it",
        ),
        Some(other) => {
            Finding::new(SECTION, "io_uring_disabled", format!("{other}: no process may use it"))
        }
    };
    let is_disabled = facts.io_uring_disabled.is_some_and(|value| value > 0);
    let seccomp = match facts.seccomp {
        None => Finding::unknown(SECTION, "seccomp"),
        Some(0) => Finding::new(SECTION, "seccomp", "no filter"),
        Some(1) => Finding::new(SECTION, "seccomp", "strict"),
        Some(_) if is_refused => {
            Finding::new(SECTION, "seccomp", "a filter is in force, which may refuse io_uring")
        }
        Some(_) => Finding::new(SECTION, "seccomp", "a filter is in force; it lets io_uring pass"),
    };
    let has_filter = facts.seccomp.is_some_and(|mode| mode > 0);
    let locked = facts.locked_memory;
    let value = format!("soft {}, hard {}", bytes_limit(locked.soft), bytes_limit(locked.hard));
    vec![
        sysctl.limited_if(is_refused && is_disabled, "sysctl -w kernel.io_uring_disabled=0"),
        seccomp.limited_if(
            is_refused && has_filter && !is_disabled,
            "let seccomp pass io_uring_* (docker: --security-opt seccomp=PROFILE)",
        ),
        Finding::new(SECTION, "locked memory", value).limited_if(
            is_refused && locked.soft.is_some_and(|bytes| bytes < GOOD_LOCKED_BYTES),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity (kernels before 5.12)",
        ),
    ]
}

fn descriptors(facts: &Facts) -> Vec<Finding> {
    const SECTION: &str = "Descriptors (one for each session)";
    let limit = facts.descriptors;
    let value = format!("soft {}, hard {}", limit_text(limit.soft), limit_text(limit.hard));
    let mut findings = vec![Finding::new(SECTION, "of a process", value).limited_if(
        limit.hard.is_some_and(|hard| hard < GOOD_DESCRIPTORS),
        format!(
            "ulimit -Hn {MANY_DESCRIPTORS}, or LimitNOFILE={MANY_DESCRIPTORS}, for more sessions"
        ),
    )];
    if let (Some(soft), hard) = (limit.soft, limit.hard)
        && hard.is_none_or(|hard| soft < hard)
    {
        let raised = "proactor raises the soft limit itself; a program of your own has to";
        findings.push(Finding::new(SECTION, "soft limit", raised));
    }
    findings.push(match facts.nr_open {
        None => Finding::unknown(SECTION, "fs.nr_open"),
        Some(most) => Finding::new(SECTION, "fs.nr_open", format!("{most}, for a hard limit"))
            .limited_if(
                most < GOOD_DESCRIPTORS,
                format!("sysctl -w fs.nr_open={MANY_DESCRIPTORS}"),
            ),
    });
    findings.push(match facts.file_max {
        None => Finding::unknown(SECTION, "fs.file-max"),
        // The kernel's default for "no limit" is the largest number that it can hold.
        Some(most) if most > 1 << 60 => Finding::new(SECTION, "fs.file-max", "no limit"),
        Some(most) => Finding::new(SECTION, "fs.file-max", format!("{most}, for the whole system"))
            .limited_if(
                most < GOOD_DESCRIPTORS,
                format!("sysctl -w fs.file-max={MANY_DESCRIPTORS}"),
            ),
    });
    findings
}

fn network(facts: &Facts) -> Vec<Finding> {
    const SECTION: &str = "Network";
    let backlog = |name, sysctl, value: Option<u64>, what: &str| match value {
        None => Finding::unknown(SECTION, name),
        Some(value) => Finding::new(SECTION, name, format!("{value} {what}")).limited_if(
            value < GOOD_BACKLOG,
            format!("sysctl -w {sysctl}={GOOD_BACKLOG} (else bursts of connects drop)"),
        ),
    };
    let buffers = |name, sysctl, sizes: Option<BufferSizes>| match sizes {
        None => Finding::unknown(SECTION, name),
        Some(BufferSizes { least, initial, most }) => {
            let value = format!(
                "{} at first, {} to {}",
                bytes_text(initial),
                bytes_text(least),
                bytes_text(most)
            );
            Finding::new(SECTION, name, value).limited_if(
                most < GOOD_TCP_BUFFER,
                format!("sysctl -w {sysctl}='{least} {initial} {GOOD_TCP_BUFFER}'"),
            )
        }
    };
    let ports = match facts.local_ports {
        None => Finding::unknown(SECTION, "local ports"),
        Some((first, last)) => {
            let count = (last + 1).saturating_sub(first);
            let value = format!("{first} to {last}: {count} connections to one address and port");
            Finding::new(SECTION, "local ports", value).limited_if(
                count < GOOD_PORTS,
                "sysctl -w net.ipv4.ip_local_port_range='1024 65535' (for clients)",
            )
        }
    };
    vec![
        backlog("somaxconn", "net.core.somaxconn", facts.somaxconn, "connections wait for accept"),
        backlog(
            "tcp_max_syn_backlog",
            "net.ipv4.tcp_max_syn_backlog",
            facts.tcp_max_syn_backlog,
            "half-open connections",
        ),
        ports,
        buffers("tcp_rmem", "net.ipv4.tcp_rmem", facts.tcp_rmem),
        buffers("tcp_wmem", "net.ipv4.tcp_wmem", facts.tcp_wmem),
    ]
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

fn bytes_limit(limit: Option<u64>) -> String {
    limit.map_or_else(|| "none".to_owned(), bytes_text)
}

#[cfg(test)]
mod tests {
    use super::super::backends::BackendState;
    use super::super::facts::ResourceLimit;
    use super::*;

    fn backends(refusal: Option<&str>) -> Backends {
        Backends {
            would_use: Some(if refusal.is_some() { "epoll" } else { "io_uring" }),
            refusal: None,
            forced_by_environment: None,
            backends: vec![BackendState {
                name: "io_uring",
                refusal: refusal.map(str::to_owned),
                features: Vec::new(),
            }],
        }
    }

    fn advice(facts: &Facts, backends: &Backends) -> Vec<String> {
        judge(facts, backends).into_iter().filter_map(|finding| finding.advice).collect()
    }

    #[test]
    fn a_good_machine_needs_no_advice() {
        let facts = Facts {
            descriptors: ResourceLimit { soft: Some(1024), hard: Some(1_048_576) },
            somaxconn: Some(4096),
            tcp_max_syn_backlog: Some(4096),
            local_ports: Some((32_768, 60_999)),
            ..Facts::default()
        };
        assert_eq!(advice(&facts, &backends(None)), [""; 0]);
    }

    #[test]
    fn small_limits_are_named_with_their_remedy() {
        let facts = Facts {
            descriptors: ResourceLimit { soft: Some(64), hard: Some(64) },
            somaxconn: Some(128),
            ..Facts::default()
        };
        let advice = advice(&facts, &backends(None));
        assert_eq!(advice.len(), 2, "{advice:?}");
        assert!(advice[0].contains("LimitNOFILE"));
        assert!(advice[1].contains("net.core.somaxconn=4096"));
    }

    #[test]
    fn permission_matters_only_where_io_uring_is_refused() {
        let facts = Facts { seccomp: Some(2), ..Facts::default() };
        assert!(advice(&facts, &backends(None)).is_empty());
        assert!(advice(&facts, &backends(Some("EPERM")))[0].contains("seccomp"));
        let facts = Facts { io_uring_disabled: Some(2), ..facts };
        assert_eq!(advice(&facts, &backends(Some("EPERM"))).len(), 1);
    }

    #[test]
    fn advice_fits_a_line() {
        let facts = Facts {
            processors: Some(64),
            cgroup: super::super::cgroup::CgroupLimits {
                processors: Some(1.5),
                memory_bytes: Some(1 << 28),
                tasks: Some(10),
            },
            io_uring_disabled: Some(1),
            locked_memory: ResourceLimit { soft: Some(65_536), hard: Some(65_536) },
            descriptors: ResourceLimit { soft: Some(64), hard: Some(64) },
            nr_open: Some(64),
            file_max: Some(64),
            somaxconn: Some(128),
            tcp_max_syn_backlog: Some(128),
            local_ports: Some((60_000, 60_999)),
            ..Facts::default()
        };
        let advice = advice(&facts, &backends(Some("EPERM")));
        assert!(advice.len() >= 8, "{advice:?}");
        for line in advice {
            assert!(line.len() <= 76 && !line.contains('\n'), "{line}");
        }
    }
}
