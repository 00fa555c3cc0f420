//! The probe on this kernel as it is, and behind filters as container runtimes install them.

use std::time::Instant;

use super::*;

/// Probes on a thread that gets `errno` from each system call of `refused`; `None`, with the
/// reason printed, where this machine lets nobody install a filter.
fn probe_behind_filter(refused: libc::c_long, errno: i32) -> Option<Probe> {
    let filtered = std::thread::spawn(move || install_filter(refused, errno).map(|()| probe()));
    match filtered.join().unwrap() {
        Ok(probe) => Some(probe),
        Err(error) => {
            eprintln!("skipped: seccomp filters cannot be installed here: {error}");
            None
        }
    }
}

/// Makes a system call fail with `errno` for this thread, and for no other one.
fn install_filter(refused: libc::c_long, errno: i32) -> io::Result<()> {
    let instruction =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    // The number of the call is the first word of what a filter sees (`struct seccomp_data`).
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, refused as u32, 0, 1),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let check = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: takes numbers only, and changes the calling thread alone.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_usize, 0_usize, 0_usize, 0_usize) })?;
    let mode = libc::SECCOMP_MODE_FILTER as usize;
    // SAFETY: the kernel copies the program, which lives for the call; of the calling thread alone.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) })
}

fn assert_consistent(probe: &Probe) {
    let names: Vec<&str> = probe.capabilities.iter().map(|c| c.name).collect();
    assert_eq!(names, CHECKS.map(|check| check.name), "each feature is listed once, in order");
    let complete = probe.capabilities.iter().all(|c| c.available || !c.required);
    assert_eq!(probe.usable, complete);
    assert_eq!(probe.usable, probe.refusal.is_none());
    assert!(probe.capabilities.iter().all(|c| !c.detail.is_empty()));
    let has = |name| probe.capabilities.iter().any(|c| c.name == name && c.available);
    let features = Features {
        taskrun_flag: has("IORING_SETUP_TASKRUN_FLAG"),
        no_sqarray: has("IORING_SETUP_NO_SQARRAY"),
        registered_ring: has("IORING_REGISTER_RING_FDS"),
        recv_bundle: has("IORING_RECVSEND_BUNDLE"),
    };
    assert_eq!(probe.features, features);
}

#[test]
fn the_probe_says_what_this_kernel_has() {
    let start = Instant::now();
    let probe = probe();
    let elapsed = start.elapsed();
    for capability in &probe.capabilities {
        let mark = if capability.available { '+' } else { '-' };
        println!("{mark} {}: {}", capability.name, capability.detail);
    }
    println!("usable: {}, refusal: {:?}, took {elapsed:?}", probe.usable, probe.refusal);
    assert_consistent(&probe);
    assert_consistent(probe_once());
    assert!(std::ptr::eq(probe_once(), probe_once()));
}

#[test]
fn the_probe_leaves_no_descriptor_behind() {
    // On a thread with descriptors of its own: other tests open and close theirs meanwhile.
    let counts = std::thread::spawn(|| {
        // SAFETY: takes a flag only, and changes the calling thread alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        let count = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let before = count();
        for _ in 0..10 {
            probe();
        }
        (before, count())
    });
    let (before, after) = counts.join().unwrap();
    assert_eq!(before, after);
}

#[test]
fn a_filter_that_forbids_io_uring_is_named() {
    let Some(probe) = probe_behind_filter(libc::SYS_io_uring_setup, libc::EPERM) else { return };
    assert_consistent(&probe);
    assert!(probe.capabilities.iter().all(|c| !c.available));
    let refusal = probe.refusal.unwrap();
    println!("{refusal}");
    assert!(refusal.starts_with("io_uring_setup: EPERM: "), "{refusal}");
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if !matches!(disabled.as_deref().map(str::trim), Ok("1" | "2")) {
        assert!(refusal.contains("blocked by a seccomp filter"), "{refusal}");
    }
}

#[test]
fn a_filter_that_hides_io_uring_is_named() {
    let Some(probe) = probe_behind_filter(libc::SYS_io_uring_setup, libc::ENOSYS) else { return };
    assert_consistent(&probe);
    let refusal = probe.refusal.unwrap();
    println!("{refusal}");
    assert!(refusal.starts_with("io_uring_setup: ENOSYS: "), "{refusal}");
    assert!(refusal.contains("seccomp filter") && refusal.contains("without io_uring"));
}

#[test]
fn a_feature_that_is_missing_is_named() {
    if !probe_once().usable {
        return eprintln!("skipped: no io_uring here: {:?}", probe_once().refusal);
    }
    let Some(probe) = probe_behind_filter(libc::SYS_io_uring_register, libc::EINVAL) else {
        return;
    };
    assert_consistent(&probe);
    let refusal = probe.refusal.unwrap();
    assert_eq!(refusal, "IORING_REGISTER_PBUF_RING: io_uring_register: EINVAL");
    assert!(probe.capabilities[0].available && !probe.usable);
}

#[test]
fn a_ring_that_cannot_be_entered_is_not_used() {
    if !probe_once().usable {
        return eprintln!("skipped: no io_uring here: {:?}", probe_once().refusal);
    }
    let Some(probe) = probe_behind_filter(libc::SYS_io_uring_enter, libc::EPERM) else { return };
    assert_consistent(&probe);
    assert_eq!(probe.refusal.unwrap(), "IORING_RECV_MULTISHOT: io_uring_enter: EPERM");
}
