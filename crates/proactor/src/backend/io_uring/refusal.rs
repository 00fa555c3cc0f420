//! Why the kernel refuses io_uring, in words that name what to change.

use std::fs;
use std::io;

/// The call, the error's name, and its likely cause on this machine.
pub(super) fn of_setup(error: &io::Error) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => not_permitted(),
        Some(libc::ENOSYS) => not_there(),
        Some(libc::ENOMEM) => out_of_memory(),
        Some(libc::EMFILE) => format!(
            "no descriptor left in this process: RLIMIT_NOFILE is {}",
            limit("Max open files")
        ),
        Some(libc::ENFILE) => "no descriptor left in the system: fs.file-max".into(),
        Some(libc::EINVAL) => "the kernel does not know a flag that is needed".into(),
        _ => error.to_string(),
    };
    format!("{}: {cause}", of_call("io_uring_setup", error))
}

/// The call and the error's name.
pub(super) fn of_call(call: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => of_errno(call, errno),
        None => format!("{call}: {error}"),
    }
}

/// As [`of_call`], for an `errno`.
pub(super) fn of_errno(call: &str, errno: i32) -> String {
    match errno_name(errno) {
        Some(name) => format!("{call}: {name}"),
        None => format!("{call}: errno {errno}"),
    }
}

/// Denied by policy: the kernel's own switch, a filter, or a security module.
fn not_permitted() -> String {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    match disabled.as_deref().map(str::trim) {
        Ok("2") => "switched off for every process: kernel.io_uring_disabled=2".into(),
        // It may be a filter all the same, where this process is in that group.
        Ok("1") => {
            let group = fs::read_to_string("/proc/sys/kernel/io_uring_group");
            let group = group.as_deref().map_or("?", str::trim);
            format!(
                "allowed only to CAP_SYS_ADMIN and to group {group}: kernel.io_uring_disabled=1, \
                 kernel.io_uring_group={group}{}",
                if has_filter() {
                    "; or blocked by the seccomp filter of this process"
                } else {
                    ""
                }
            )
        }
        disabled => {
            let switch = disabled.map_or(String::new(), |value| {
                format!(" (kernel.io_uring_disabled={value} would allow it)")
            });
            if has_filter() {
                format!(
                    "blocked by a seccomp filter, as container runtimes install: allow \
                     io_uring_setup, io_uring_enter and io_uring_register in its profile{switch}"
                )
            } else {
                format!("denied by a security module (SELinux, AppArmor){switch}")
            }
        }
    }
}

/// No such system call: an old or trimmed kernel, or something that stands in for one.
fn not_there() -> String {
    if has_filter() {
        "hidden by a seccomp filter of this process, or a kernel without io_uring".into()
    } else {
        "a kernel without io_uring (before Linux 5.1, or CONFIG_IO_URING=n), or a sandbox that \
         stands in for the kernel"
            .into()
    }
}

fn out_of_memory() -> String {
    format!(
        "no memory for a ring: RLIMIT_MEMLOCK is {} (kernels before 5.12 charge rings to it), or \
         the memory limit of the control group is reached",
        limit("Max locked memory")
    )
}

/// Whether a seccomp filter is installed for this thread. Each thread has its own; the one of the
/// process's main thread is only the next best.
fn has_filter() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status")
        .or_else(|_| fs::read_to_string("/proc/self/status"))
        .unwrap_or_default();
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

/// A resource limit of this process, by the name that the system's own list has for it.
fn limit(name: &str) -> String {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown").into()
}

/// The name of an error that the calls of a ring are known to give.
fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOSYS => "ENOSYS",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EBADFD => "EBADFD",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ENOBUFS => "ENOBUFS",
        libc::ETIME => "ETIME",
        libc::EALREADY => "EALREADY",
        libc::ECANCELED => "ECANCELED",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32) -> String {
        of_setup(&io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_refusal_names_the_call_the_error_and_what_to_look_at() {
        assert!(text(libc::ENOMEM).starts_with("io_uring_setup: ENOMEM: "));
        assert!(text(libc::ENOMEM).contains("RLIMIT_MEMLOCK is "));
        assert!(text(libc::EMFILE).contains("RLIMIT_NOFILE is "));
        assert!(!text(libc::ENOMEM).contains("unknown") && !text(libc::EMFILE).contains("unknown"));
        assert!(text(libc::EINVAL).starts_with("io_uring_setup: EINVAL: "));
        assert!(of_errno("io_uring_enter", 4095).ends_with("errno 4095"));
    }
}
